"""Pure tensor functions for the mathematics of semantic-aware flows."""

from .blur import gaussian_blur, gaussian_kernel
from .clamp import CLAMPS, Clamp, soft_clamp
from .coreset import Coreset, k_center, sparse_projection
from .coreset_stream import CoresetAccumulator, StreamedCoreset
from .false_alarms import region_significance
from .gaussian import FORMS, Form, normal_log_odds, normal_log_prob
from .inside import covered, grown, hide
from .inverse_gamma import (
    digamma,
    inverse_gamma_kl,
    inverse_gamma_log_mean,
    inverse_gamma_mode,
    inverse_gamma_precision,
    inverse_gamma_prior,
)
from .kernel_density import kernel_log_prob, likeliest_bandwidth
from .layout import border, from_locations, mask_to_grid, take_locations, to_locations
from .neighbors import nearest
from .series import digamma_series, lgamma_series
from .spline import rational_quadratic_spline

__all__ = [
    "CLAMPS", "FORMS", "Clamp", "Coreset", "CoresetAccumulator", "Form", "StreamedCoreset", "border", "covered",
    "digamma", "digamma_series", "from_locations", "gaussian_blur", "gaussian_kernel", "grown", "hide",
    "inverse_gamma_kl", "inverse_gamma_log_mean", "inverse_gamma_mode", "inverse_gamma_precision",
    "inverse_gamma_prior", "k_center", "kernel_log_prob", "lgamma_series", "likeliest_bandwidth", "mask_to_grid",
    "nearest", "normal_log_odds", "normal_log_prob", "rational_quadratic_spline", "region_significance", "soft_clamp",
    "sparse_projection", "take_locations", "to_locations",
]  # fmt: skip
