"""A detector against a labelled data set."""

from typing import Any

import torch
from torch.utils.data import Dataset

from ..errors import DataError
from ..metrics import image_metrics, pixel_metrics
from .detector import Detector
from .loading import batches

__all__ = ["evaluate"]


def evaluate(
    detector: Detector, dataset: Dataset[Any], batch_size: int = 8, workers: int = 0
) -> dict[str, float | None]:
    """Image AUROC, pixel AUROC, AUPRO (up to a false-positive rate of 0.3) and image F1-max, as fractions.

    Args:
        detector: trained.
        dataset: of `semflow.data.Sample`, with labels 0 and 1. Pixel metrics are None unless every sample has a mask.
        batch_size, workers: of the loader; they do not change the result.

    Returns:
        `image_auroc`, `pixel_auroc`, `aupro`, `image_f1_max`.

    Raises:
        DataError: an image is not labelled.
    """
    device = next(detector.flows.parameters()).device
    scores, labels, maps, masks = [], [], [], []
    has_masks = True
    for batch in batches(dataset, batch_size, workers):
        if (batch.labels < 0).any():
            unknown = batch.paths[int((batch.labels < 0).nonzero()[0, 0])]
            raise DataError(f"{unknown}: a label is needed to evaluate, put good images into a folder named good")
        prediction = detector.predict(batch.images.to(device))
        scores.append(prediction.score.cpu())
        labels.append(batch.labels)
        has_masks = has_masks and batch.anomaly_masks is not None
        if batch.anomaly_masks is not None:
            maps.append(prediction.anomaly_map.cpu())
            masks.append(batch.anomaly_masks)
    images = image_metrics(torch.cat(scores), torch.cat(labels))
    pixels = pixel_metrics(torch.cat(maps), torch.cat(masks)) if has_masks else None
    return {
        "image_auroc": images.auroc,
        "pixel_auroc": None if pixels is None else pixels.auroc,
        "aupro": None if pixels is None else pixels.aupro,
        "image_f1_max": images.f1_max,
    }
