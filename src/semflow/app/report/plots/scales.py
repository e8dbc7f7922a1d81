"""Plots of the semantic Gaussian base per scale: predicted variances, and latents against the means."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from semflow._channels import in_color, split_region
from semflow._optional import import_optional
from semflow.app.report.colors import HEAT_ANCHORS, to_array
from semflow.detectors import Latents
from semflow.errors import ShapeError
from semflow.functional import mask_to_grid

from .style import ANOMALOUS, FAINT, NORMAL, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def variance_maps(image: Tensor, variances: Sequence[Tensor], strides: Sequence[int] | None = None) -> "Figure":
    """Plot an image and the predicted variance at each scale, each with its own color bar.

    Args:
        image: (C, H, W) in [0, 1], see `semflow.data.Sample`.
        variances: One map (H_k, W_k) per scale, as in `Prediction.variance`.
        strides: Stride of each scale, for the titles.

    Example:
        >>> import torch
        >>> figure = variance_maps(torch.rand(3, 16, 16), [torch.rand(4, 4), torch.rand(2, 2)], strides=(4, 8))
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['image', 'stride 4', 'stride 8']
    """
    maps = [to_array(variance) for variance in variances]
    if not maps or any(variance.ndim != 2 for variance in maps):
        raise ShapeError(f"variances must be one map (H, W) per scale, but got {[variance.shape for variance in maps]}")
    figure, axes = new_figure(1 + len(maps), width=2.9, height=2.7)
    colors, _ = split_region(in_color(to_array(image)))
    axes[0, 0].imshow(np.clip(colors.transpose(1, 2, 0), 0, 1))
    axes[0, 0].set_title("image", fontsize=10)
    levels = import_optional("matplotlib.colors").LinearSegmentedColormap.from_list("semflow", list(HEAT_ANCHORS / 255))
    for k, (panel, variance) in enumerate(zip(axes[0, 1:], maps, strict=True)):
        drawn = panel.imshow(variance, cmap=levels, interpolation="nearest")
        panel.set_title(f"scale {k + 1}" if strides is None else f"stride {strides[k]}", fontsize=10)
        figure.colorbar(drawn, ax=panel, shrink=0.75).ax.tick_params(labelsize=8)
    for panel in axes[0]:
        panel.set(xticks=[], yticks=[])
    return figure


def base_by_scale(
    scales: Sequence[Latents], anomaly_masks: Tensor, means: tuple[float, float] = (0.0, 1.0), bins: int = 40
) -> "Figure":
    """Plot histograms of latents and of predicted variances at normal and at anomalous locations, per scale.

    The first row shows the latents' mean over channels; training moves it toward the means of the base, the dashed
    lines. The second row shows the predicted variance at the same locations.

    Args:
        scales: Result of `Detector.encode`, with statistics.
        anomaly_masks: (B, H, W), true where anomalous. A location is anomalous if any of its pixels is.
        means: Normal and anomalous mean of the base.
        bins: Bins of each histogram.
    """
    figure, axes = new_figure(len(scales), 2, width=3.4, height=2.6)
    for k, scale in enumerate(scales):
        if scale.statistics is None:
            raise ShapeError(f"scales[{k}] must have statistics, but got none: its base is a standard normal")
        marked = to_array(mask_to_grid(anomaly_masks, (scale.z.shape[2], scale.z.shape[3]), "max")) > 0
        _two_kinds(axes[0, k], to_array(scale.z.mean(1)), marked, bins)
        for mean, color in zip(means, (NORMAL, ANOMALOUS), strict=True):
            axes[0, k].axvline(mean, color=color, linewidth=1.5, linestyle="--")
        height, width = marked.shape[1:]
        finish(axes[0, k], f"scale {k + 1}, {height} x {width}", "mean of z over channels", "density")
        _two_kinds(axes[1, k], to_array(scale.statistics.variance()), marked, bins)
        finish(axes[1, k], "", "predicted variance", "density")
    return figure


def _two_kinds(axes: Any, values: NDArray[np.float32], marked: NDArray[np.bool_], bins: int) -> None:
    edges = np.histogram_bin_edges(values, bins=bins)
    for chosen, color, name, hatch in ((~marked, NORMAL, "normal", "//"), (marked, ANOMALOUS, "anomalous", "")):
        if chosen.any():
            axes.hist(values[chosen], edges, density=True, color=color, alpha=0.6, hatch=hatch, edgecolor="white",
                      linewidth=0.3, label=name)  # fmt: skip
    if not marked.any():
        axes.text(0.98, 0.95, "no anomalous location", transform=axes.transAxes, ha="right", va="top", color=FAINT)
