"""A detector over a whole data set: one result per image, and the metrics of all of them."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data import ImageDataset, Sample
from ..errors import ConfigError, DataError
from ..metrics import ImageAccumulator, PixelAccumulator
from .loading import batches
from .predictor import Predictor

__all__ = ["METRICS", "Evaluation", "ImageResult", "check_labels", "evaluate", "results", "summarize"]

METRICS = ("image_auroc", "pixel_auroc", "aupro", "image_f1_max")


class ImageResult(NamedTuple):
    """What the detector says of one image: the sample, its score and its anomaly map (H, W), on the CPU."""

    sample: Sample
    score: float
    anomaly_map: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a labelled data set as fractions; the pixel metrics are None where the pixels are not labelled."""

    image_auroc: float
    pixel_auroc: float | None
    aupro: float | None
    image_f1_max: float
    images: int
    anomalous_images: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The fields by name, for JSON."""
        return asdict(self)


def results(
    detector: Predictor, dataset: Dataset[Any], *, batch_size: int = 8, workers: int = 0
) -> Iterator[ImageResult]:
    """Predict a data set in its order, one result per image, on the device that the detector is on.

    A detector that does not localise gets no masks, so that it has no pixel metrics.

    Args:
        detector: a fitted detector.
        dataset: samples of one size.
        batch_size: images at a time; it changes the speed, not the scores.
        workers: processes that decode images.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    if workers < 0:
        raise ConfigError(f"workers is {workers}, expected 0 or more")
    device = detector.device
    for batch in batches(dataset, batch_size, workers):
        prediction = detector.predict(batch.images.to(device))
        scores, maps = prediction.score.cpu(), prediction.anomaly_map.float().cpu()
        for index, path in enumerate(batch.paths):
            masks = batch.anomaly_masks if detector.localises else None
            mask = None if masks is None else masks[index]
            sample = Sample(batch.images[index], int(batch.labels[index]), mask, path)
            yield ImageResult(sample, float(scores[index]), maps[index])


def summarize(results: Iterable[ImageResult]) -> Evaluation:
    """The metrics of results that come one by one; the pixel metrics need a mask with every image."""
    images, pixels = ImageAccumulator(), PixelAccumulator()
    labels: list[int] = []
    masked = True
    for sample, score, anomaly_map in results:
        if sample.label < 0:
            raise DataError(f"{sample.path}: a label is needed to evaluate, put good images into a folder named good")
        labels.append(sample.label)
        images.update(torch.tensor([score]), torch.tensor([sample.label]))
        if sample.anomaly_mask is None:
            masked = False
        elif masked:
            pixels.update(anomaly_map, sample.anomaly_mask)
    of_images = images.compute()
    of_pixels = pixels.compute() if masked else None
    return Evaluation(
        image_auroc=of_images.auroc,
        pixel_auroc=of_pixels.auroc if of_pixels else None,
        aupro=of_pixels.aupro if of_pixels else None,
        image_f1_max=of_images.f1_max,
        images=len(labels),
        anomalous_images=sum(labels),
    )


def check_labels(dataset: ImageDataset) -> None:
    """Raise DataError before any work if the metrics will not be defined."""
    labels = set(dataset.labels)
    where = getattr(dataset, "root", None) or (dataset.paths[0] if dataset.paths else "the data set")
    if labels == {0, 1}:
        return
    came = {0: "only normal images", 1: "only anomalous images", -1: "images without labels"}
    found = came[min(labels)] if labels else "no image"
    raise DataError(
        f"{where}: expected normal and anomalous test images (test/good and test/DEFECT, or good and DEFECT), "
        f"but it holds {found}; to score images without labels use semflow predict"
    )


def evaluate(
    detector: Predictor, dataset: Dataset[Any], batch_size: int = 8, workers: int = 0
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
        ShapeError: the images are all normal, or all anomalous.
    """
    found = summarize(results(detector, dataset, batch_size=batch_size, workers=workers)).as_dict()
    return {name: found[name] for name in METRICS}
