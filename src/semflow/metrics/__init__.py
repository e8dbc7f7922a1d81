"""Exact metrics of anomaly detection and localization, as functions and as accumulators.

No thresholds are sampled and no curves are resampled: ties are merged, and one sort of the scores gives every metric.
For scores that do not fit into memory, `HistogramAccumulator` gives the same metrics with error bounds.
"""

from .accumulators import ImageAccumulator, PixelAccumulator
from .histogram import Bounded, BoundedPixelMetrics, HistogramAccumulator
from .ranking import ImageMetrics, auroc, average_precision, f1_max, f1_max_threshold, image_metrics
from .regions import PixelMetrics, aupro, pixel_metrics

__all__ = [
    "Bounded", "BoundedPixelMetrics", "HistogramAccumulator", "ImageAccumulator", "ImageMetrics", "PixelAccumulator",
    "PixelMetrics", "aupro", "auroc", "average_precision", "f1_max", "f1_max_threshold", "image_metrics",
    "pixel_metrics",
]  # fmt: skip
