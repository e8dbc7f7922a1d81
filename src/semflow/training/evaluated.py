"""Results for single images, and the metrics of many."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from semflow._defaults import own_device
from semflow.data import Sample
from semflow.errors import DataError
from semflow.metrics import ImageAccumulator

from .distributed import ALONE, Processes
from .measures import Measures
from .pixels import Pixels


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
        found = asdict(self)
        further = found.pop("further")
        del found["aupimo_of_images"]
        return {**found, **further}

    @classmethod
    def mean(cls, parts: Sequence[Self]) -> Self:
        """Return the mean of each metric over several data sets, None if one has none; numbers of images are added.

        Example:
            >>> parts = [Evaluation(x, None, None, 0.8, images=20, anomalous_images=10) for x in (0.9, 0.7)]
            >>> Evaluation.mean(parts).image_auroc, Evaluation.mean(parts).images
            (0.8, 40)
        """

        def mean(values: Iterable[float | None]) -> float | None:
            known = list(values)
            return None if None in known else fmean(cast(list[float], known))

        found: dict[str, Any] = {
            entry.name: mean(getattr(part, entry.name) for part in parts)
            for entry in fields(cls) if entry.name not in ("further", "aupimo_of_images")
        }  # fmt: skip
        found |= {name: sum(getattr(part, name) for part in parts) for name in ("images", "anomalous_images")}
        further = {name: mean(part.further[name] for part in parts) for name in parts[0].further}
        single = [part.aupimo_of_images for part in parts if part.aupimo_of_images is not None]
        of_images = {path: value for values in single for path, value in values.items()}
        return cls(**found, further=further, aupimo_of_images=of_images or None)


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
        measures.update(sample, anomaly_map, p_value, is_anomalous, mask, score)
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
