"""Exact metrics of anomaly detection and localization, as functions and as accumulators.

No thresholds are sampled and no curves are resampled: ties are merged, and one sort of the scores gives every metric.
For scores that do not fit into memory, `HistogramAccumulator` gives the same metrics with error bounds.
"""

from .accumulators import CalibrationAccumulator, F1Accumulator, ImageAccumulator, PixelAccumulator, SproAccumulator
from .decisions import CalibrationError, calibration_error, f1
from .histogram import Bounded, BoundedPixelMetrics, HistogramAccumulator
from .per_image import Aupimo, AupimoAccumulator, aupimo
from .ranking import ImageMetrics, auroc, average_precision, f1_max, f1_max_threshold, image_metrics
from .regions import PixelMetrics, aupro, pixel_metrics
from .saturated import Defect, spro

__all__ = [
    "Aupimo", "AupimoAccumulator", "Bounded", "BoundedPixelMetrics", "CalibrationAccumulator", "CalibrationError",
    "Defect", "F1Accumulator", "HistogramAccumulator", "ImageAccumulator", "ImageMetrics", "PixelAccumulator",
    "PixelMetrics", "SproAccumulator", "aupimo", "aupro", "auroc", "average_precision", "calibration_error", "f1",
    "f1_max", "f1_max_threshold", "image_metrics", "pixel_metrics", "spro",
]  # fmt: skip
