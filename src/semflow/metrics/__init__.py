"""Exact metrics of detection and localisation, as functions and as accumulators.

No threshold is sampled and no curve is resampled: ties are merged, and one sort of the scores gives every number.
Where the scores do not fit into memory, `HistogramAccumulator` gives the same metrics with bounds on their error.
"""

from .accumulators import ImageAccumulator, PixelAccumulator
from .histogram import Bounded, BoundedPixelMetrics, HistogramAccumulator
from .ranking import ImageMetrics, auroc, average_precision, f1_max, f1_max_threshold, image_metrics
from .regions import PixelMetrics, aupro, pixel_metrics

__all__ = [
    "Bounded",
    "BoundedPixelMetrics",
    "HistogramAccumulator",
    "ImageAccumulator",
    "ImageMetrics",
    "PixelAccumulator",
    "PixelMetrics",
    "aupro",
    "auroc",
    "average_precision",
    "f1_max",
    "f1_max_threshold",
    "image_metrics",
    "pixel_metrics",
]
