"""A detector against a labelled data set."""

from typing import Any

import torch
from torch.utils.data import Dataset

from ..errors import DataError
from ..metrics import aupro, auroc, f1_max
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
        if has_masks:
            maps.append(prediction.anomaly_map.cpu())
            masks.append(batch.anomaly_masks)
    score, label = torch.cat(scores), torch.cat(labels)
    result: dict[str, float | None] = {"image_auroc": auroc(score, label), "pixel_auroc": None, "aupro": None}
    if has_masks:
        anomaly_map, mask = torch.cat(maps), torch.cat([m for m in masks if m is not None])
        result["pixel_auroc"] = auroc(anomaly_map, mask)
        result["aupro"] = aupro(anomaly_map, mask)
    result["image_f1_max"] = f1_max(score, label)
    return result
