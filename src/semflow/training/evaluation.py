"""Results of a detector on a data set, and their metrics."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, cast

from torch.utils.data import Dataset

from semflow._validation import at_least
from semflow.data import ImageDataset, Sample
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError

from .categories import by_category, deciding_for
from .distributed import ALONE, Processes
from .evaluated import Evaluation, ImageResult, summarize
from .loading import batches, checked, dealt_batches, loaded
from .measures import ALWAYS as METRICS
from .measures import Measures

RATES = ("false_alarm_rate", "detection_rate", "mask_false_alarm_rate")


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
        >>> import torch
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

    Of a data set with several `categories`, they are the means over the categories, see `evaluate_categories`.

    `metrics` adds others by name, see `semflow.metrics`:

    - `image_average_precision`, `pixel_average_precision`, `pixel_f1_max`
    - `aupro@0.05`: AUPRO up to another rate
    - `aupimo`: mean AUPIMO of the anomalous images
    - `part_auroc`: AUROC of parts, each with the highest score of its views, for data sets of several views such as
      `semflow.data.RealIAD`
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
        >>> import torch
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> samples = [Sample(torch.rand(3, 32, 32), label, None, f"{label}.png") for label in (0, 1)]
        >>> list(evaluate(detector, samples))
        ['image_auroc', 'pixel_auroc', 'aupro', 'image_f1_max']
    """
    options = {"batch_size": batch_size, "workers": workers, "processes": processes}
    parts = by_category(dataset) or {"": dataset}
    return _named(Evaluation.mean([_evaluation(detector, *part, metrics, options) for part in parts.items()]))


def evaluate_categories(
    detector: Predictor,
    dataset: Dataset[Any],
    batch_size: int = 8,
    workers: int = 0,
    processes: Processes = ALONE,
    metrics: str | Sequence[str] = (),
) -> dict[str, dict[str, float | None]]:
    """Compute what `evaluate` does for each category of a data set, such as `semflow.data.Categories`.

    A calibrated detector decides by the calibration images of the category, if it has them.

    Example:
        >>> import torch
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> class Parts(list):
        ...     categories = ("screw", "screw", "nut", "nut")
        >>> samples = Parts(Sample(torch.rand(3, 32, 32), k % 2, None, f"{k}.png") for k in range(4))
        >>> list(evaluate_categories(detector, samples))
        ['screw', 'nut']
    """
    options = {"batch_size": batch_size, "workers": workers, "processes": processes}
    parts = by_category(dataset)
    if not parts:
        raise ConfigError(f"dataset must have categories, but got none in {type(dataset).__name__}; use evaluate")
    return {name: _named(_evaluation(detector, name, part, metrics, options)) for name, part in parts.items()}


def _evaluation(
    detector: Predictor, category: str, dataset: Dataset[Any], metrics: str | Sequence[str], options: Mapping[str, Any]
) -> Evaluation:
    measures = Measures(metrics, detector, dataset, len(cast(Sized, checked(dataset))))
    with deciding_for(detector, category):
        return summarize(results(detector, dataset, **options), options["processes"], measures)


def _named(found: Evaluation) -> dict[str, float | None]:
    values = found.as_dict()
    rates = [name for name in RATES if values[name] is not None]
    return {name: values[name] for name in (*METRICS, *rates, *found.further)}
