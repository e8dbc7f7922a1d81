"""Composition of flows, and the stack of couplings shared by SANFlow, CFLOW-AD, FastFlow and MSFlow."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, cast

from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError
from semflow.functional import Clamp
from semflow.nn import Context, LocationSubnet, SubnetFactory

from .base import Flow, Result, check_event
from .coupling import AffineCoupling
from .fused_block import find_block
from .mixing import GlobalAffine, HardPermutation, SoftPermutation
from .standardize import Standardize


class FlowSequence(Flow):
    """Composition of flows, first to last, whose log-dets are summed (SANFlow, Eq. 3).

    The event is `"sample"` if that of one member is; log-dets of the other members are then summed over locations.

    Args:
        flows: At least one flow; all get the same context.

    Example:
        >>> import torch
        >>> z, log_det = FlowSequence([AffineCoupling(8), HardPermutation(8)])(torch.randn(2, 8, 4, 4))
        >>> z.shape, log_det.shape
        (torch.Size([2, 8, 4, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        if not len(self.flows):
            raise ConfigError("flows must contain at least one flow, but got none")
        events = [check_event(flow, f"flows[{position}]") for position, flow in enumerate(self.flows)]
        self.event = "sample" if "sample" in events else "location"

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Apply all flows and sum their log-dets, (B, H, W) or (B,) depending on the event."""
        total: Tensor | None = None
        for flow in self._steps(x):
            x, log_det = flow(x, context)
            if self.event == "sample" and flow.event == "location":
                log_det = log_det.sum((1, 2))
            total = log_det if total is None else total + log_det
        return x, cast(Tensor, total)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Apply the inverses, last to first."""
        for flow in reversed(self.flows):
            z = cast(Flow, flow).inverse(z, context)
        return z

    def _steps(self, x: Tensor) -> Iterator[Any]:
        """Yield the flows, with blocks fused where a kernel exists."""
        position = 0
        while position < len(self.flows):
            block = find_block(list(self.flows[position : position + 3]), x)
            yield block or self.flows[position]
            position += 3 if block else 1

    def __len__(self) -> int:
        return len(self.flows)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.flows)

    def __getitem__(self, index: int) -> nn.Module:
        return self.flows[index]


@checked
def coupling_stack(
    channels: int,
    blocks: int,
    subnets: Sequence[SubnetFactory] = (LocationSubnet,),
    *,
    coupling: Callable[..., nn.Module] = AffineCoupling,
    context_channels: int = 0,
    permutation: Literal["hard", "soft"] = "hard",
    standardize: bool = False,
    start: float = 1.0,
    clamp: float = 1.9,
    clamp_form: Clamp = "tanh",
) -> FlowSequence:
    """Stack blocks of coupling, global affine and permutation (RealNVP; FrEIA's all-in-one block).

    Args:
        channels: C.
        blocks: Number of blocks, at least 1.
        subnets: Subnet factories that the blocks use in turn, or constructors `f(in, out)` of any networks, see
            `AffineCoupling`; FastFlow alternates 3x3 and 1x1 convolutions.
        coupling: `AffineCoupling`, or `SplineCoupling`; bind options of either by `functools.partial`.
        context_channels: D of the context of every coupling, 0 for none.
        permutation: `hard` permutes the channels, `soft` rotates them.
        standardize: Start with a `Standardize`, which must be fitted to the features.
        start: Initial scale of the last global affine, which gives latents the variance of the base.
        clamp: Bound of the couplings' parameters.
        clamp_form: See `semflow.functional.soft_clamp`.

    Example:
        >>> flow = coupling_stack(40, blocks=2, context_channels=128, standardize=True)
        >>> [type(layer).__name__ for layer in flow][:4]
        ['Standardize', 'AffineCoupling', 'GlobalAffine', 'HardPermutation']
    """
    at_least(1, blocks=blocks)
    for subnet in subnets:
        if isinstance(subnet, nn.Module):
            kind = type(subnet).__name__
            raise ConfigError(f"subnets must construct a module for each block, but got the module {kind}")
    mixing = HardPermutation if permutation == "hard" else SoftPermutation
    layers: list[nn.Module] = [Standardize(channels)] if standardize else []
    for block in range(blocks):
        layers += [
            coupling(channels, subnets[block % len(subnets)], context_channels, clamp, clamp_form),
            GlobalAffine(channels, start=start if block == blocks - 1 else 1.0),
            mixing(channels),
        ]
    return FlowSequence(layers)
