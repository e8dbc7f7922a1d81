"""Plots of training, scores and statistics, in one style; they need matplotlib (extra `plot`) when they are called.

Each function returns a `matplotlib.figure.Figure`; `save_figure` writes it as PNG and SVG. No global state of
matplotlib is changed. The colours are those of Okabe and Ito, which colour-blind readers tell apart; lines differ in
their dashes as well.
"""

from .curves import pro_curve, pro_points, roc_curve, roc_points
from .scales import base_by_scale, variance_maps
from .scores import score_histogram
from .style import save_figure
from .training import training_curves

__all__ = [
    "base_by_scale",
    "pro_curve",
    "pro_points",
    "roc_curve",
    "roc_points",
    "save_figure",
    "score_histogram",
    "training_curves",
    "variance_maps",
]
