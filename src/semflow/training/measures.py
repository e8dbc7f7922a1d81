"""Further metrics of an evaluation, chosen by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from semflow._validation import checked
from semflow.data import Sample
from semflow.detectors import Predictor
from semflow.errors import ConfigError
from semflow.metrics import AupimoAccumulator, CalibrationAccumulator, Defect, F1Accumulator, ImageMetrics, auroc
from semflow.metrics.regions import check_fpr_limit
from semflow.metrics.saturated import split_defects

from .pixels import Pixels

ALWAYS = ("image_auroc", "pixel_auroc", "aupro", "image_f1_max")
LIMITS = {"aupro": 0.3, "spro": 0.05}
OF_CALIBRATION = ("calibration_error", "calibration_distance", "calibration_excess")
OF_DECISIONS = ("class_f1", "seg_f1", *OF_CALIBRATION)
OF_IMAGES = ("image_average_precision", "part_auroc")
NAMES = (*OF_IMAGES, "pixel_average_precision", "pixel_f1_max", *LIMITS, "aupimo", *OF_DECISIONS)


class Measures:
    """Metrics of results by their names; accumulators over the results of one process, which `merge` joins.

    Args:
        names: `NAMES`; `aupro` and `spro` may have a limit of the false-positive rate, as `aupro@0.05`. Those of
            `ALWAYS` are part of every evaluation.
        detector: what is evaluated; `OF_DECISIONS` need a calibrated one.
        dataset: what it is evaluated on; `spro` needs one with `defects`, `part_auroc` one with `part`, functions of
            the path of an image.
        images: highest number of results in all processes.

    Raises:
        ConfigError: If a name is unknown, or not defined for the detector or the data set.

    Example:
        >>> Measures(["aupro@0.05", "spro"]).limits
        {'aupro@0.05': 0.05, 'spro': 0.05}
    """

    @checked
    def __init__(
        self,
        names: str | Sequence[str],
        detector: Predictor | None = None,
        dataset: Any = None,
        images: int | None = None,
    ) -> None:
        chosen = dict.fromkeys((names,) if isinstance(names, str) else names)
        self.names = tuple(name for name in chosen if name not in ALWAYS)
        self.limits = {name: limit for name in self.names if (limit := _limit(name)) is not None}
        decided = [name for name in self.names if name in OF_DECISIONS]
        if decided and detector is not None and detector.false_alarm_rate is None:
            raise ConfigError(
                f"metrics must have {decided[0]} only for a calibrated detector, but got one without calibration; "
                "calibrate it"
            )
        saturated = any(name.startswith("spro") for name in self.names)
        self._defects: Callable[[str], Sequence[Defect]] | None = _method(dataset, "defects")
        self._part: Callable[[str], str] | None = _method(dataset, "part")
        for name, asked, needed, example, found in (
            ("spro", saturated, "saturation thresholds", "MVTecLOCO", self._defects),
            ("part_auroc", "part_auroc" in self.names, "several views of a part", "RealIAD", self._part),
        ):
            if dataset is not None and asked and found is None:
                raise ConfigError(
                    f"metrics must have {name} only for a data set with {needed}, such as {example}, but got "
                    f"{type(dataset).__name__}"
                )
        self._parts: dict[str, tuple[float, int]] = {}  # highest score and label of the views
        self._saturated = Pixels() if saturated else None
        self._aupimo = AupimoAccumulator(images=images) if "aupimo" in self.names else None
        self._paths: list[str] = []  # of the images in AUPIMO
        self._class, self._seg, self._p_values = F1Accumulator(), F1Accumulator(), CalibrationAccumulator()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_defects": None, "_part": None}  # the data set is not sent to other processes

    def update(
        self,
        sample: Sample,
        anomaly_map: Tensor,
        p_value: float | None = None,
        is_anomalous: bool | None = None,
        mask: Tensor | None = None,
        score: float | None = None,
    ) -> None:
        """Add a result, as in `ImageResult`."""
        if "part_auroc" in self.names and self._part is not None and score is not None:
            self._add_views({self._part(sample.path): (score, sample.label)})
        if "class_f1" in self.names and is_anomalous is not None:
            self._class.update(is_anomalous, sample.label)
        if sample.label == 0 and p_value is not None:
            self._p_values.update(p_value)
        truth = sample.anomaly_mask
        if truth is None:
            return
        inside = anomaly_map > -torch.inf  # the region of interest
        if "seg_f1" in self.names and mask is not None:
            self._seg.update(mask[inside] > 0, truth[inside])
        # At a small size a mask can be empty; its image is still no normal one.
        if self._aupimo is not None and bool(truth.any()) == (sample.label == 1):
            self._aupimo.update(anomaly_map, truth, inside)
            self._paths.append(sample.path)
        if self._saturated is not None and self._defects is not None:
            defects = self._defects(sample.path) if sample.label else []
            self._saturated.add(split_defects([anomaly_map], [defects], [inside]))

    def merge(self, others: Iterable["Measures"]) -> None:
        """Add the data of others with the same arguments."""
        for other in others:
            for name in ("_saturated", "_aupimo", "_class", "_seg", "_p_values"):
                if (own := getattr(self, name)) is not None:
                    own.merge(getattr(other, name))
            self._paths += other._paths
            self._add_views(other._parts)

    def _add_views(self, views: Mapping[str, tuple[float, int]]) -> None:
        for part, view in views.items():
            self._parts[part] = tuple(map(max, view, self._parts.get(part, view)))  # type: ignore[assignment]

    def compute(
        self, of_images: ImageMetrics, pixels: Pixels | None
    ) -> tuple[dict[str, float | None], dict[str, float] | None]:
        """Return the metrics by name; and AUPIMO of the anomalous images by path, if it is one of them.

        Args:
            of_images: metrics of the images, computed already.
            pixels: of all results; None if the pixels are not labeled, and their metrics None.
        """
        found = {name: self._compute(name, of_images, pixels) for name in self.names if name != "aupimo"}
        if self._aupimo is None:
            return found, None
        overlaps = None if pixels is None else self._aupimo.compute()
        found = {name: overlaps and overlaps.mean if name == "aupimo" else found[name] for name in self.names}
        pairs = () if overlaps is None else zip(self._paths, overlaps.of_images.tolist(), strict=True)
        return found, {path: value for path, value in sorted(pairs) if value == value} or None

    def _compute(self, name: str, of_images: ImageMetrics, pixels: Pixels | None) -> float | None:
        if name == "image_average_precision":
            return of_images.average_precision
        if name == "part_auroc":
            if not self._parts:
                return None
            scores, labels = zip(*self._parts.values(), strict=True)
            return auroc(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels))
        if name == "class_f1":
            return self._class.compute()
        if name in OF_CALIBRATION:
            return float(getattr(self._p_values.compute(), name.removeprefix("calibration_")))
        if pixels is None:
            return None
        if name == "seg_f1":
            return self._seg.compute()
        if self._saturated is not None and name.startswith("spro"):
            return self._saturated.compute(self.limits[name]).aupro
        if name in self.limits:
            return pixels.compute(self.limits[name]).aupro
        kind = name.removeprefix("pixel_")
        return float(getattr(pixels.compute(warned=(kind,)), kind))


def _method(dataset: Any, name: str) -> Any:
    """Return a method of a data set, or of the one that it is a subset of; None if it has none."""
    while not hasattr(dataset, name) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return getattr(dataset, name, None)


def _limit(name: str) -> float | None:
    """Check the name of a metric and return its limit, if it has one."""
    kind, at, limit = name.partition("@")
    if kind not in NAMES or (at and kind not in LIMITS):
        raise ConfigError(f"metrics must be among {', '.join(NAMES)}, aupro@LIMIT and spro@LIMIT, but got {name!r}")
    if not at:
        return LIMITS.get(kind)
    try:
        value = float(limit)
    except ValueError:
        raise ConfigError(f"the limit of {kind} must be a false-positive rate, but got {name!r}") from None
    check_fpr_limit(value)
    return value
