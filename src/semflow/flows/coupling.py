"""Affine coupling of RealNVP, conditioned on position."""

import torch
from torch import Tensor, nn

from semflow._validation import at_least, checked, positive
from semflow.errors import ShapeError
from semflow.functional import Clamp, soft_clamp
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Context, LocationSubnet, SubnetFactory
from semflow.nn.network_subnet import given_shape, make_subnet

from .base import Flow, Result, check_channels


class AffineCoupling(Flow):
    """Affine coupling, in which one half of the channels scales and shifts the other (RealNVP, Dinh et al., 2017).

    With x = [p, a] and (s, t) = gain subnet(p, context): z = [p, a exp(c(s)) + t] and log_det = sum c(s), where c is a
    soft clamp. The event is that of the subnet.

    Args:
        channels: C, at least 2; if C is odd, the passive half p is the larger one.
        subnet: Factory of the subnet; `LocationSubnet` couples channels, `ConvSubnet` also neighboring locations. Or a
            constructor `f(in, out)` of any network, as in FrEIA, or a module, see `semflow.nn.NetworkSubnet`.
        context_channels: D of the context; 0 for an unconditional flow.
        clamp: Bound of the log-scales.
        clamp_form: See `semflow.functional.soft_clamp`.
        gain: Factor on the subnet's output, small so that training starts near the identity.
        swap: Transform the first half instead of the second.

    Example:
        >>> z, log_det = AffineCoupling(40)(torch.randn(2, 40, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([2, 40, 8, 8]), torch.Size([2, 8, 8]))
    """

    @checked
    def __init__(
        self,
        channels: int,
        subnet: SubnetFactory | nn.Module = LocationSubnet,
        context_channels: int = 0,
        clamp: float = 1.9,
        clamp_form: Clamp = "tanh",
        gain: float = 0.1,
        swap: bool = False,
    ) -> None:
        super().__init__()
        at_least(2, channels=channels)
        positive(clamp=clamp)
        passive, active = channels - channels // 2, channels // 2
        self.sizes = (active, passive) if swap else (passive, active)
        self.channels, self.swap = channels, swap
        self.clamp, self.clamp_form, self.gain = clamp, clamp_form, gain
        self.subnet = make_subnet(subnet, passive, 2 * active, context_channels)
        self.event = self.subnet.event

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Map x (B, C, H, W) to z and log_det, (B, H, W) or (B,) depending on the event."""
        passive, active = self.halves(x)
        log_scale, shift = self._scale_and_shift(passive, context)
        active = active * torch.exp(log_scale) + shift
        z = torch.cat((active, passive) if self.swap else (passive, active), dim=1)
        return z, log_scale.sum(1 if self.event == "location" else (1, 2, 3))

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Map z back to x."""
        passive, active = self.halves(z)
        log_scale, shift = self._scale_and_shift(passive, context)
        active = (active - shift) * torch.exp(-log_scale)
        return torch.cat((active, passive) if self.swap else (passive, active), dim=1)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the passive and the active half of x, as views."""
        check_channels(x, self.channels)
        first, second = x.split(self.sizes, dim=1)
        return (second, first) if self.swap else (first, second)

    def _scale_and_shift(self, passive: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        found = self.subnet(passive, context)
        expected = (passive.shape[0], 2 * self.sizes[0 if self.swap else 1], *passive.shape[2:])
        if not isinstance(found, Tensor) or found.shape != expected:  # smaller ones would broadcast to a wrong log-det
            raise ShapeError(f"subnet must return (B, out, H, W) = {expected}, but got {given_shape(found)}")
        scale, shift = (found * self.gain).chunk(2, dim=1)
        # The inverse would be inaccurate with exp of half-precision scales.
        return soft_clamp(narrow(scale, scale), self.clamp, self.clamp_form), shift

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"{self.channels}, event={self.event}, clamp={self.clamp} ({self.clamp_form}), swap={self.swap}"
