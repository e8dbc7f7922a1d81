"""The affine coupling of RealNVP, conditioned on position."""

from functools import partial

import torch
from torch import Tensor, nn

from semflow._validation import checked
from semflow.errors import ConfigError
from semflow.functional import Clamp, from_locations, soft_clamp, to_locations
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Context, ConvSubnet, LocationSubnet, SubnetFactory

from .base import Flow, Result, check_channels, check_clamp
from .kernels.fused import fused, fused_rest, fusible
from .mixing import GlobalAffine, HardPermutation
from .steps import CouplingForm

__all__ = ["AffineCoupling"]

LARGE = 2**19
"""Numbers of an image's map from which convolutions are faster with its channels last."""


class AffineCoupling(Flow):
    """One half of the channels scales and shifts the other (Dinh et al., RealNVP, 2017).

    With x = [p, a] and (s, t) = gain subnet(p, context): z = [p, a exp(c(s)) + t] and log_det = sum c(s), where c is a
    soft clamp.

    Args:
        channels: C, at least 2; the passive half is the larger one where C is odd.
        subnet: `factory(in_channels, out_channels, context_channels)`; `LocationSubnet` couples channels only,
            `ConvSubnet` neighbours too, and the flow's `event` follows it.
        context_channels: D of the context; 0 for an unconditional flow.
        clamp, clamp_form: see `semflow.functional.soft_clamp`.
        gain: factor on the subnet's output, small so that training starts near the identity.
        swap: exchange the roles of the halves: the first is transformed.

    Example:
        >>> from semflow.nn import SinusoidalPosition2d
        >>> flow = AffineCoupling(40, context_channels=128)
        >>> z, log_det = flow(torch.randn(2, 40, 8, 8), SinusoidalPosition2d(128)(8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([2, 40, 8, 8]), torch.Size([2, 8, 8]))
    """

    @checked
    def __init__(
        self,
        channels: int,
        subnet: SubnetFactory = LocationSubnet,
        context_channels: int = 0,
        clamp: float = 1.9,
        clamp_form: Clamp = "tanh",
        gain: float = 0.1,
        swap: bool = False,
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ConfigError(
                f"channels of a coupling must be at least 2, one to condition another, but got {channels}"
            )
        check_clamp(clamp)
        small, large = channels // 2, channels - channels // 2
        passive, active = large, small
        self.sizes = (active, passive) if swap else (passive, active)
        self.channels, self.swap = channels, swap
        self.clamp, self.clamp_form, self.gain = clamp, clamp_form, gain
        self.subnet = subnet(passive, 2 * active, context_channels)
        self.event = self.subnet.event

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """(B, C, H, W) to z of that shape and log_det (B, H, W), or (B,) where the subnet sees neighbours."""
        passive, active = self._halves(x)
        if self.fuses(x):
            return self.fused(x, context)
        log_scale, shift = self._scale_and_shift(passive, context)
        active = active * torch.exp(log_scale) + shift
        z = torch.cat((active, passive) if self.swap else (passive, active), dim=1)
        return z, log_scale.sum(1 if self.event == "location" else (1, 2, 3))

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """The x that `forward` maps to z."""
        passive, active = self._halves(z)
        log_scale, shift = self._scale_and_shift(passive, context)
        active = (active - shift) * torch.exp(-log_scale)
        return torch.cat((active, passive) if self.swap else (passive, active), dim=1)

    def fuses(self, x: Tensor, *others: nn.Module) -> bool:
        """Whether `fused` may stand for `forward`, and for the other modules that it includes."""
        subnet = self.subnet
        if type(self) is not AffineCoupling or type(subnet) not in (LocationSubnet, ConvSubnet):
            return False
        if isinstance(subnet, LocationSubnet):
            others = (*others, subnet, subnet.output)
            if type(subnet.output) is not nn.Linear:
                return False
        elif torch.compiler.is_compiling():  # which fuses what follows a convolution itself
            return False
        return fusible(x, self._form, self, *others)

    def fused(
        self,
        x: Tensor,
        context: Context = None,
        affine: GlobalAffine | None = None,
        permutation: HardPermutation | None = None,
    ) -> Result:
        """The same as `forward`, or as it and the two flows that follow, see `semflow.flows.kernels.fused`."""
        check_channels(x, self.channels)
        net, size = self.subnet, (x.shape[2], x.shape[3])
        if isinstance(net, LocationSubnet):
            weights = net.weight_x, net.output.weight, net.output.bias
            call = partial(fused, self._form, to_locations(x), net.table(x, context), *weights)
        else:
            # Large maps as rows of locations, which convolutions then read as they are; smaller ones channel by
            # channel, where a permutation moves whole planes. An image's size decides, not how many there are.
            rows = x.shape[1:].numel() >= LARGE
            x = x.contiguous(memory_format=torch.channels_last if rows else torch.contiguous_format)
            as_they_lie = to_locations if rows else partial(torch.flatten, start_dim=2)
            output = net(self._halves(x)[0], context)
            call = partial(fused_rest, self._form, as_they_lie(x), as_they_lie(output))
        if affine is None or permutation is None:
            z, log_det = call()
        else:
            scale = affine.scale()
            z, log_det = call(scale, affine.shift, index=permutation.index, inverse=permutation.inverse_index)
            log_det = log_det + torch.log(scale).sum()
        log_det = log_det.view(len(x), *size)
        z = from_locations(z, size) if z.dim() == 2 else z.unflatten(2, size)
        return z, log_det if self.event == "location" else log_det.sum((1, 2))

    @property
    def _form(self) -> CouplingForm:
        return CouplingForm(self.sizes, self.swap, self.gain, self.clamp, self.clamp_form)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_channels(x, self.channels)
        first, second = x.split(self.sizes, dim=1)
        return (second, first) if self.swap else (first, second)

    def _scale_and_shift(self, passive: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        scale, shift = (self.subnet(passive, context) * self.gain).chunk(2, dim=1)
        # exp of half-precision scales would cost the inverse its digits.
        return soft_clamp(narrow(scale, scale), self.clamp, self.clamp_form), shift

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.channels}, event={self.event}, clamp={self.clamp} ({self.clamp_form}), swap={self.swap}"
