"""Plots of training, scores and predicted statistics; calling one needs matplotlib (extra `plot`).

Each function returns a `matplotlib.figure.Figure` and leaves matplotlib's global state unchanged; `save_figure` writes
a figure as PNG and SVG. The colors are those of Okabe and Ito, which suit impaired color vision; lines differ in their
dashes as well.
"""

from .scales import base_by_scale, variance_maps
from .scores import pro_curve, pro_points, roc_curve, roc_points, score_histogram
from .style import save_figure
from .training import training_curves

__all__ = [
    "base_by_scale", "pro_curve", "pro_points", "roc_curve", "roc_points", "save_figure", "score_histogram",
    "training_curves", "variance_maps",
]  # fmt: skip
