"""Results of a detector on a data set, and their metrics."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._defaults import own_device
from semflow._validation import at_least
from semflow.data import ImageDataset, Sample
from semflow.detectors import Predictor
from semflow.errors import DataError
from semflow.metrics import ImageAccumulator

from .distributed import ALONE, Processes
from .loading import batches, checked, dealt_batches, loaded
from .measures import ALWAYS as METRICS
from .measures import Measures
from .pixels import Pixels

RATES = ("false_alarm_rate", "detection_rate", "mask_false_alarm_rate")


class ImageResult(NamedTuple):
    """Prediction for one image: its sample, score and anomaly map (H, W), on the CPU.

    P-value, decision and mask (H, W) are None if the detector is not calibrated.

    Example:
        >>> ImageResult(Sample(torch.rand(3, 8, 8), -1, None, "a.png"), 1.5, torch.rand(8, 8)).sample.path
        'a.png'
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

    Rates are None if the detector is not calibrated: `false_alarm_rate` and `detection_rate` are the fractions
    of normal and of anomalous images that are called anomalous, `mask_false_alarm_rate` the fraction of normal images
    whose mask is not empty. `further` are the metrics that were asked for by name, see `evaluate`; with `aupimo` among
    them, `aupimo_of_images` has its value for each anomalous image, by path.

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
    further: Mapping[str, float | None] = field(default_factory=dict)
    aupimo_of_images: Mapping[str, float] | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Return all numbers by name, without those of single images."""
        fields = asdict(self)
        further = fields.pop("further")
        del fields["aupimo_of_images"]
        return {**fields, **further}


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
        dataset: samples of one size, or of any with tiles.
        batch_size: images per batch; it does not change the scores.
        workers: processes that decode images.
        processes: processes that share the batches; each yields its own results.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> (result,) = results(detector, [Sample(torch.rand(3, 32, 32), -1, None, "a.png")])
        >>> result.sample.path, tuple(result.anomaly_map.shape), result.is_anomalous
        ('a.png', (32, 32), None)
    """
    at_least(1, batch_size=batch_size)
    at_least(0, workers=workers)
    dataset = checked(dataset)
    batch_size, tiled = images_at_once(detector, batch_size), detector.provenance.tiles is not None
    dealt = dealt_batches(len(cast(Sized, dataset)), batch_size, processes)
    for batch in loaded(batches(dataset, batch_size, workers, dealt, copy=not tiled)):
        prediction = detector.predict(batch.images)
        scores, maps = prediction.score.tolist(), prediction.anomaly_map.float().cpu()
        p_values = [None] * len(scores) if prediction.p_value is None else prediction.p_value.tolist()
        alarms = [None] * len(scores) if prediction.is_anomalous is None else prediction.is_anomalous.tolist()
        masks = None if prediction.mask is None else prediction.mask.cpu()
        truths = batch.anomaly_masks if detector.localizes else None
        for k, path in enumerate(batch.paths):
            truth, mask = (None if x is None else x[k] for x in (truths, masks))
            sample = Sample(batch.images[k], int(batch.labels[k]), truth, path)
            yield ImageResult(sample, scores[k], maps[k], p_values[k], alarms[k], mask)


def images_at_once(detector: Predictor, batch_size: int) -> int:
    """Return the number of images in a batch of `results`: with tiles one, since images may be large.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> images_at_once(cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32), 8)
        8
    """
    return batch_size if detector.provenance.tiles is None else 1


@own_device()
def summarize(
    results: Iterable[ImageResult], processes: Processes = ALONE, measures: Measures | None = None
) -> Evaluation:
    """Compute the metrics of results; pixel metrics need a mask for every image.

    They are exact up to 67 million pixels. Those of more pixels come from a histogram of the scores, see
    `semflow.metrics.HistogramAccumulator`, so that memory does not grow with the number of images.

    Args:
        results: results of this process.
        processes: processes with results; each returns the metrics of all results.
        measures: further metrics, without data.

    Raises:
        DataError: If an image has no label.
        ShapeError: If all images are normal or all are anomalous.

    Example:
        >>> samples = [Sample(torch.rand(3, 8, 8), label, None, f"{label}.png") for label in (0, 1)]
        >>> found = summarize(ImageResult(samples[i], (0.1, 0.7)[i], torch.rand(8, 8)) for i in (0, 1))
        >>> found.image_auroc, found.pixel_auroc, found.images
        (1.0, None, 2)
    """
    images, pixels, masked = ImageAccumulator(), Pixels(), True
    alarms: list[tuple[int, bool | None, bool | None]] = []  # label, decision, mask not empty
    measures = measures or Measures(())
    for sample, score, anomaly_map, p_value, is_anomalous, mask in results:
        if sample.label < 0:
            raise DataError(f"{sample.path} must have a label, but got none; move normal images to a folder good")
        alarms.append((sample.label, is_anomalous, None if mask is None else bool(mask.any())))
        images.update(torch.tensor([score]), torch.tensor([sample.label]))
        if sample.anomaly_mask is None:
            masked = False
        elif masked:
            pixels.update(anomaly_map, sample.anomaly_mask)
        measures.update(sample, anomaly_map, p_value, is_anomalous, mask)
    parts = processes.gather_all((images, pixels, masked, alarms, measures))
    images, pixels, measures = ImageAccumulator(), Pixels(), parts[0][4]
    images.merge(part[0] for part in parts)
    measures.merge(part[4] for part in parts[1:])
    for part in parts:
        pixels.merge(part[1])
    alarms = [row for part in parts for row in part[3]]
    of_images = images.compute()
    masked = all(part[2] for part in parts)
    of_pixels = pixels.compute() if masked else None
    further, aupimo_of_images = measures.compute(of_images, pixels if masked else None)
    return Evaluation(
        image_auroc=of_images.auroc,
        pixel_auroc=of_pixels.auroc if of_pixels else None,
        aupro=of_pixels.aupro if of_pixels else None,
        image_f1_max=of_images.f1_max,
        images=len(alarms),
        anomalous_images=sum(label for label, _, _ in alarms),
        false_alarm_rate=_rate(alarm for label, alarm, _ in alarms if label == 0),
        detection_rate=_rate(alarm for label, alarm, _ in alarms if label == 1),
        mask_false_alarm_rate=_rate(alarm for label, _, alarm in alarms if label == 0),
        further=further,
        aupimo_of_images=aupimo_of_images,
    )


def _rate(alarms: Iterable[bool | None]) -> float | None:
    decided = [alarm for alarm in alarms if alarm is not None]
    return sum(decided) / len(decided) if decided else None


def check_labels(dataset: ImageDataset) -> None:
    """Raise DataError unless a data set has normal and anomalous images, as the metrics need.

    Example:
        >>> from pathlib import Path
        >>> from semflow.data import Record
        >>> check_labels(ImageDataset([Record(Path("a.png"), 0), Record(Path("b.png"), 1)]))
    """
    labels = set(dataset.labels)
    if labels == {0, 1}:
        return
    where = dataset.root or (dataset.paths[0] if dataset.paths else "dataset")
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
    metrics: str | Sequence[str] = (),
) -> dict[str, float | None]:
    """Compute image AUROC, pixel AUROC, AUPRO (up to a false-positive rate of 0.3) and image F1-max, as fractions.

    `metrics` adds others by name, see `semflow.metrics`:

    - `image_average_precision`, `pixel_average_precision`, `pixel_f1_max`
    - `aupro@0.05`: AUPRO up to another rate
    - `aupimo`: mean AUPIMO of the anomalous images
    - `spro@0.05`: sPRO, for data sets with saturation thresholds such as `semflow.data.MVTecLOCO`
    - `seg_f1`, `class_f1`: F1 of the pixels and images that a calibrated detector calls anomalous
    - `calibration_error`, `calibration_distance`, `calibration_excess`: of the p-values of the normal images

    Args:
        detector: trained detector.
        dataset: samples with labels 0 and 1; pixel metrics are None unless every sample has a mask.
        batch_size: images per batch; it does not change the result.
        workers: processes that load images.
        processes: processes that share the images; each returns the metrics of all images.
        metrics: names of further metrics.

    Returns:
        `image_auroc`, `pixel_auroc`, `aupro` and `image_f1_max`; for a calibrated detector also `false_alarm_rate`,
        `detection_rate` and `mask_false_alarm_rate`, see `Evaluation`; and `metrics`.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> samples = [Sample(torch.rand(3, 32, 32), label, None, f"{label}.png") for label in (0, 1)]
        >>> list(evaluate(detector, samples))
        ['image_auroc', 'pixel_auroc', 'aupro', 'image_f1_max']
    """
    measures = Measures(metrics, detector, dataset, len(cast(Sized, checked(dataset))))
    own = results(detector, dataset, batch_size=batch_size, workers=workers, processes=processes)
    found = summarize(own, processes, measures).as_dict()
    rates = [name for name in RATES if found[name] is not None]
    return {name: found[name] for name in (*METRICS, *rates, *measures.names)}
