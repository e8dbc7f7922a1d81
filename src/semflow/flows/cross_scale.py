"""Affine coupling across the scales of a pyramid, from CS-Flow and MSFlow."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semflow._validation import checked, positive
from semflow.errors import ConfigError, ShapeError
from semflow.functional import Clamp, soft_clamp
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Context, CrossScaleConvs, CrossScaleSubnetFactory
from semflow.nn.network_subnet import given_shape

from .base import check_channels
from .pyramid import PyramidFlow, PyramidResult, check_scales


class CrossScaleCoupling(PyramidFlow):
    """Affine coupling that transforms half of the channels of each scale, given the other halves of all scales.

    With x_k = [p_k, a_k] and (s_1, t_1, ..., s_K, t_K) = gain subnet(p_1, ..., p_K):
    z_k = [p_k, a_k exp(c(s_k)) + t_k], and scale k contributes sum c(s_k) to the log-det, where c is a soft clamp.
    Rudolph et al., "Fully Convolutional Cross-Scale-Flows" (WACV 2022); with `FusionSubnet` the fusion flow of Zhou
    et al., "MSFlow" (TNNLS 2024).

    Args:
        channels: C_k of each scale, fine to coarse, at least 2; if C_k is odd, the passive half is the larger one.
        subnet: Constructor `f(in, out)` of a module of lists of maps, such as `CrossScaleConvs` or `FusionSubnet`; bind
            options by `functools.partial`.
        clamp: Bound of the log-scales.
        clamp_form: See `semflow.functional.soft_clamp`.
        gain: Factor on the subnet's output.
        swap: Transform the first half instead of the second.

    Example:
        >>> latents, log_dets = CrossScaleCoupling((4, 6))([torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)])
        >>> [tuple(log_det.shape) for log_det in log_dets]
        [(2,), (2,)]
    """

    joint = True

    @checked
    def __init__(
        self,
        channels: Sequence[int],
        subnet: CrossScaleSubnetFactory = CrossScaleConvs,
        clamp: float = 3.0,
        clamp_form: Clamp = "atan",
        gain: float = 1.0,
        swap: bool = False,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 2:
            raise ConfigError(f"channels must be at least 2 for each scale, but got {tuple(channels)}")
        positive(clamp=clamp)
        self.channels, self.swap = tuple(channels), swap
        self.clamp, self.clamp_form, self.gain = clamp, clamp_form, gain
        self.events = tuple("sample" for _ in channels)
        passive, active = [c - c // 2 for c in channels], [c // 2 for c in channels]
        self.sizes = list(zip(active, passive, strict=True)) if swap else list(zip(passive, active, strict=True))
        self.subnet = subnet(passive, [2 * c for c in active])

    def forward(self, maps: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> PyramidResult:
        """Map K maps (B, C_k, H_k, W_k) to latents of the same shapes and K terms (B,) of the log-det."""
        passive, active = self._halves(maps)
        latents, log_dets = [], []
        for p, a, (log_scale, shift) in zip(passive, active, self._scales_and_shifts(passive), strict=True):
            latents.append(self._join(p, a * torch.exp(log_scale) + shift))
            log_dets.append(log_scale.sum((1, 2, 3)))
        return latents, log_dets

    def inverse(self, latents: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> list[Tensor]:
        """Map latents back to K maps."""
        passive, active = self._halves(latents)
        return [
            self._join(p, (a - shift) * torch.exp(-log_scale))
            for p, a, (log_scale, shift) in zip(passive, active, self._scales_and_shifts(passive), strict=True)
        ]

    def _halves(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        check_scales(maps, None, len(self.channels))
        for x, channels in zip(maps, self.channels, strict=True):
            check_channels(x, channels)
        parts = [x.split(sizes, dim=1) for x, sizes in zip(maps, self.sizes, strict=True)]
        first, second = [p[0] for p in parts], [p[1] for p in parts]
        return (second, first) if self.swap else (first, second)

    def _join(self, passive: Tensor, active: Tensor) -> Tensor:
        return torch.cat((active, passive) if self.swap else (passive, active), dim=1)

    def _scales_and_shifts(self, passive: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        found = list(self.subnet(passive))
        active = [sizes[0 if self.swap else 1] for sizes in self.sizes]
        expected = [(p.shape[0], 2 * a, *p.shape[2:]) for p, a in zip(passive, active, strict=True)]
        if (shapes := [given_shape(out) for out in found]) != expected:
            raise ShapeError(f"subnet must return maps {expected}, but got {shapes}")
        halves = [(self.gain * out).chunk(2, dim=1) for out in found]
        return [(soft_clamp(narrow(s, s), self.clamp, self.clamp_form), t) for s, t in halves]

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"{self.channels}, clamp={self.clamp} ({self.clamp_form}), swap={self.swap}"
