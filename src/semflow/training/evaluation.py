"""Results of a detector on a data set, and their metrics."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._validation import at_least
from semflow.data import ImageDataset, Sample
from semflow.detectors import Predictor
from semflow.errors import DataError
from semflow.metrics import ImageAccumulator, PixelAccumulator

from .distributed import ALONE, Processes
from .loading import batches, dealt_batches

__all__ = ["METRICS", "RATES", "Evaluation", "ImageResult", "check_labels", "evaluate", "results", "summarize"]

METRICS = ("image_auroc", "pixel_auroc", "aupro", "image_f1_max")
RATES = ("false_alarm_rate", "detection_rate", "mask_false_alarm_rate")


class ImageResult(NamedTuple):
    """Prediction for one image: its sample, score and anomaly map (H, W), on the CPU.

    P-value, decision and mask (H, W) are None if the detector is not calibrated.

    Example:
        >>> result = ImageResult(Sample(torch.rand(3, 8, 8), -1, None, "a.png"), 1.5, torch.rand(8, 8))
        >>> result.sample.path, result.score, result.is_anomalous
        ('a.png', 1.5, None)
    """

    sample: Sample
    score: float
    anomaly_map: Tensor
    p_value: float | None = None
    is_anomalous: bool | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a labeled data set, as fractions; pixel metrics are None if the pixels are not labeled.

    The last three are None if the detector is not calibrated: `false_alarm_rate` and `detection_rate` are the fractions
    of normal and of anomalous images that are called anomalous, `mask_false_alarm_rate` the fraction of normal images
    whose mask is not empty.

    Example:
        >>> Evaluation(0.9, None, None, 0.8, images=20, anomalous_images=10).as_dict()["image_auroc"]
        0.9
    """

    image_auroc: float
    pixel_auroc: float | None
    aupro: float | None
    image_f1_max: float
    images: int
    anomalous_images: int
    false_alarm_rate: float | None = None
    detection_rate: float | None = None
    mask_false_alarm_rate: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the fields by name."""
        return asdict(self)


def results(
    detector: Predictor,
    dataset: Dataset[Any],
    *,
    batch_size: int = 8,
    workers: int = 0,
    processes: Processes = ALONE,
) -> Iterator[ImageResult]:
    """Predict the images of a data set in order, on the detector's device.

    Samples of a detector that does not localize have no masks, so that it has no pixel metrics.

    Args:
        detector: trained detector.
        dataset: samples of one size.
        batch_size: images per batch; it does not change the scores.
        workers: processes that decode images.
        processes: processes that share the batches; each yields its own results.

    Yields:
        One result per image.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> found = results(detector, [Sample(torch.rand(3, 32, 32), -1, None, f"{i}.png") for i in range(3)])
        >>> [(result.sample.path, tuple(result.anomaly_map.shape)) for result in found]
        [('0.png', (32, 32)), ('1.png', (32, 32)), ('2.png', (32, 32))]
    """
    at_least(1, batch_size=batch_size)
    at_least(0, workers=workers)
    device = detector.device
    dealt = dealt_batches(len(cast(Sized, dataset)), batch_size, processes)
    for batch in batches(dataset, batch_size, workers, dealt):
        prediction = detector.predict(batch.images.to(device))
        scores, maps = prediction.score.cpu(), prediction.anomaly_map.float().cpu()
        decided = [
            None if x is None else x.cpu() for x in (prediction.p_value, prediction.is_anomalous, prediction.mask)
        ]
        for index, path in enumerate(batch.paths):
            masks = batch.anomaly_masks if detector.localizes else None
            mask = None if masks is None else masks[index]
            sample = Sample(batch.images[index], int(batch.labels[index]), mask, path)
            p_value, is_anomalous, where = (None if x is None else x[index] for x in decided)
            yield ImageResult(
                sample,
                float(scores[index]),
                maps[index],
                None if p_value is None else float(p_value),
                None if is_anomalous is None else bool(is_anomalous),
                where,
            )


class Tally:
    """Accumulator of results for the metrics."""

    def __init__(self) -> None:
        self.images, self.pixels = ImageAccumulator(), PixelAccumulator()
        self.labels: list[int] = []
        self.alarms: dict[int, list[bool]] = {0: [], 1: []}
        self.mask_alarms: list[bool] = []
        self.masked = True

    def update(self, result: ImageResult) -> None:
        """Add a result; raise DataError if its image has no label."""
        sample, score, anomaly_map, _, is_anomalous, mask = result
        if sample.label < 0:
            raise DataError(
                f"{sample.path} must have a label, but got none; put normal images into a folder named good"
            )
        self.labels.append(sample.label)
        if is_anomalous is not None:
            self.alarms[sample.label].append(is_anomalous)
        if mask is not None and sample.label == 0:
            self.mask_alarms.append(bool(mask.any()))
        self.images.update(torch.tensor([score]), torch.tensor([sample.label]))
        if sample.anomaly_mask is None:
            self.masked = False
        elif self.masked:
            self.pixels.update(anomaly_map, sample.anomaly_mask)

    def merge(self, other: "Tally") -> None:
        """Add all results of another accumulator."""
        self.images.merge(other.images)
        self.pixels.merge(other.pixels)
        self.labels += other.labels
        for label, alarms in self.alarms.items():
            alarms += other.alarms[label]
        self.mask_alarms += other.mask_alarms
        self.masked = self.masked and other.masked

    def evaluation(self) -> Evaluation:
        """Compute the metrics; raise ShapeError without a normal and an anomalous image."""
        of_images = self.images.compute()
        of_pixels = self.pixels.compute() if self.masked else None
        return Evaluation(
            image_auroc=of_images.auroc,
            pixel_auroc=of_pixels.auroc if of_pixels else None,
            aupro=of_pixels.aupro if of_pixels else None,
            image_f1_max=of_images.f1_max,
            images=len(self.labels),
            anomalous_images=sum(self.labels),
            false_alarm_rate=_fraction(self.alarms[0]),
            detection_rate=_fraction(self.alarms[1]),
            mask_false_alarm_rate=_fraction(self.mask_alarms),
        )


def summarize(results: Iterable[ImageResult], processes: Processes = ALONE) -> Evaluation:
    """Compute the metrics of results; pixel metrics need a mask for every image.

    Args:
        results: results of this process.
        processes: processes with results; each returns the metrics of all results.

    Returns:
        The metrics.

    Raises:
        DataError: If an image has no label.
        ShapeError: If all images are normal or all are anomalous.

    Example:
        >>> samples = [Sample(torch.rand(3, 8, 8), label, None, f"{label}.png") for label in (0, 1)]
        >>> found = summarize(ImageResult(samples[i], (0.1, 0.7)[i], torch.rand(8, 8)) for i in (0, 1))
        >>> found.image_auroc, found.pixel_auroc, found.images
        (1.0, None, 2)
    """
    own, whole = Tally(), Tally()
    for result in results:
        own.update(result)
    for tally in processes.gather_all(own):
        whole.merge(tally)
    return whole.evaluation()


def _fraction(decisions: Sequence[bool]) -> float | None:
    return sum(decisions) / len(decisions) if decisions else None


def check_labels(dataset: ImageDataset) -> None:
    """Raise DataError unless a data set has normal and anomalous images, as the metrics need.

    Example:
        >>> from pathlib import Path
        >>> from semflow.data import ImageDataset, Record
        >>> check_labels(ImageDataset([Record(Path("a.png"), 0), Record(Path("b.png"), 1)]))
        >>> check_labels(ImageDataset([Record(Path("a.png"), 0)]))  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        semflow.errors.DataError: ...
    """
    labels = set(dataset.labels)
    where = getattr(dataset, "root", None) or (dataset.paths[0] if dataset.paths else "dataset")
    if labels == {0, 1}:
        return
    kinds = {0: "only normal images", 1: "only anomalous images", -1: "images without labels"}
    found = kinds[min(labels)] if labels else "no images"
    raise DataError(
        f"{where} must hold normal and anomalous test images (test/good and test/DEFECT, or good and DEFECT), "
        f"but got {found}; score images without labels with semflow predict"
    )


def evaluate(
    detector: Predictor,
    dataset: Dataset[Any],
    batch_size: int = 8,
    workers: int = 0,
    processes: Processes = ALONE,
) -> dict[str, float | None]:
    """Compute image AUROC, pixel AUROC, AUPRO (up to a false-positive rate of 0.3) and image F1-max, as fractions.

    Args:
        detector: trained detector.
        dataset: samples with labels 0 and 1; pixel metrics are None unless every sample has a mask.
        batch_size: images per batch; it does not change the result.
        workers: processes that load images.
        processes: processes that share the images; each returns the metrics of all images.

    Returns:
        `image_auroc`, `pixel_auroc`, `aupro` and `image_f1_max`; for a calibrated detector also `false_alarm_rate`,
        `detection_rate` and `mask_false_alarm_rate`, see `Evaluation`.

    Raises:
        DataError: If an image has no label.
        ShapeError: If all images are normal or all are anomalous.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> mask = torch.zeros(32, 32, dtype=torch.bool)
        >>> good = Sample(torch.rand(3, 32, 32), 0, mask, "good.png")
        >>> mask = mask.clone()
        >>> mask[:8] = True
        >>> metrics = evaluate(detector, [good, Sample(torch.rand(3, 32, 32), 1, mask, "scratch.png")])
        >>> list(metrics), metrics["image_auroc"] in (0.0, 1.0)
        (['image_auroc', 'pixel_auroc', 'aupro', 'image_f1_max'], True)
    """
    own = results(detector, dataset, batch_size=batch_size, workers=workers, processes=processes)
    found = summarize(own, processes).as_dict()
    rates = [name for name in RATES if found[name] is not None]
    return {name: found[name] for name in (*METRICS, *rates)}
