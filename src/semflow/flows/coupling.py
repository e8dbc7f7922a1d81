"""Couplings conditioned on position: affine, of RealNVP, and splines."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from semflow._validation import at_least, checked, positive
from semflow.errors import ConfigError, ShapeError
from semflow.functional import Clamp, rational_quadratic_spline, soft_clamp
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Context, LocationSubnet, SubnetFactory
from semflow.nn.network_subnet import given_shape, make_subnet

from .base import Flow, Result, check_channels


class _Coupling(Flow):
    """Flow that maps each channel of the active half by parameters that a subnet computes from the passive half."""

    def __init__(
        self,
        channels: int,
        subnet: SubnetFactory | nn.Module,
        context_channels: int,
        clamp: float,
        clamp_form: Clamp,
        gain: float,
        swap: bool,
        parameters: int,
    ) -> None:
        super().__init__()
        at_least(2, channels=channels)
        positive(clamp=clamp)
        passive, active = channels - channels // 2, channels // 2
        self.sizes = (active, passive) if swap else (passive, active)
        self.channels, self.swap = channels, swap
        self.clamp, self.clamp_form, self.gain = clamp, clamp_form, gain
        self.parameters_of_channel = parameters
        self.subnet = make_subnet(subnet, passive, parameters * active, context_channels)
        self.event = self.subnet.event

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Map x (B, C, H, W) to z and log_det, (B, H, W) or (B,) depending on the event."""
        z, log_slope = self._map(x, context, inverse=False)
        return z, log_slope.sum(1 if self.event == "location" else (1, 2, 3))

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Map z back to x."""
        return self._map(z, context, inverse=True)[0]

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the passive and the active half of x, as views."""
        check_channels(x, self.channels)
        first, second = x.split(self.sizes, dim=1)
        return (second, first) if self.swap else (first, second)

    def _map(self, x: Tensor, context: Context, inverse: bool) -> Result:
        passive, active = self.halves(x)
        found = self.subnet(passive, context)
        expected = (x.shape[0], self.parameters_of_channel * active.shape[1], *x.shape[2:])
        if not isinstance(found, Tensor) or found.shape != expected:  # smaller ones would broadcast to a wrong log-det
            raise ShapeError(f"subnet must return (B, out, H, W) = {expected}, but got {given_shape(found)}")
        active, log_slope = self._transform(active, found * self.gain, inverse)
        return torch.cat((active, passive) if self.swap else (passive, active), dim=1), log_slope

    @abstractmethod
    def _transform(self, active: Tensor, parameters: Tensor, inverse: bool) -> Result:
        """Map the active half, or map it back; the second result, log dz/dx of each channel, is used forward only."""

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"{self.channels}, event={self.event}, clamp={self.clamp} ({self.clamp_form}), swap={self.swap}"


class AffineCoupling(_Coupling):
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
        super().__init__(channels, subnet, context_channels, clamp, clamp_form, gain, swap, parameters=2)

    def _transform(self, active: Tensor, parameters: Tensor, inverse: bool) -> Result:
        scale, shift = parameters.chunk(2, dim=1)
        # The inverse would be inaccurate with exp of half-precision scales.
        log_scale = soft_clamp(narrow(scale, scale), self.clamp, self.clamp_form)
        if inverse:
            return (active - shift) * torch.exp(-log_scale), log_scale
        return active * torch.exp(log_scale) + shift, log_scale


class SplineCoupling(_Coupling):
    """Coupling in which one half of the channels bends the other by splines (neural spline flows, Durkan et al., 2019).

    With x = [p, a] and theta = c(gain subnet(p, context)), 3 K - 1 numbers per channel of a: z = [p, f(a; theta)] and
    log_det = sum log f'(a), where f is `semflow.functional.rational_quadratic_spline` of K bins, the identity outside
    [-bound, bound], and c is a soft clamp, which the published spline lacks. Channels should have about unit variance.

    Args:
        channels, subnet, context_channels, gain, swap: See `AffineCoupling`.
        clamp: Bound of theta, which keeps the slopes of bins within exp(-4 clamp) and exp(4 clamp).
        clamp_form: See `semflow.functional.soft_clamp`.
        bins: K, from 2 to 999.
        bound: Half of the interval.

    Example:
        >>> z, log_det = SplineCoupling(40)(torch.randn(2, 40, 8, 8))
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
        bins: int = 8,
        bound: float = 3.0,
    ) -> None:
        if not 2 <= bins <= 999:
            raise ConfigError(f"bins must be from 2 to 999, but got {bins}")
        positive(bound=bound)
        super().__init__(channels, subnet, context_channels, clamp, clamp_form, gain, swap, parameters=3 * bins - 1)
        self.bins, self.bound = bins, bound

    def _transform(self, active: Tensor, parameters: Tensor, inverse: bool) -> Result:
        of_channels = narrow(parameters).unflatten(1, (active.shape[1], self.parameters_of_channel)).movedim(2, -1)
        theta = soft_clamp(of_channels, self.clamp, self.clamp_form)
        widths, heights, slopes = theta.split((self.bins, self.bins, self.bins - 1), dim=-1)
        return rational_quadratic_spline(active, widths, heights, slopes, self.bound, inverse=inverse)

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"{super().extra_repr()}, bins={self.bins}, bound={self.bound}"
