"""Flows one after the other."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.nn import Context

from .base import Event, Flow, Result
from .coupling import AffineCoupling
from .mixing import GlobalAffine, HardPermutation

__all__ = ["FlowSequence"]


class _Block(NamedTuple):
    """A coupling, the affine and the permutation that follow it, as one flow: `AffineCoupling.fused`."""

    coupling: AffineCoupling
    affine: GlobalAffine
    permutation: HardPermutation

    @property
    def event(self) -> Event:
        return self.coupling.event

    def __call__(self, x: Tensor, context: Context = None) -> Result:
        return self.coupling.fused(x, context, self.affine, self.permutation)


def _block(flows: Sequence[nn.Module], x: Tensor) -> _Block | None:
    """The three as one, if they are such three."""
    if [type(flow) for flow in flows] != [AffineCoupling, GlobalAffine, HardPermutation]:
        return None
    block = _Block(*cast(Any, flows))
    channels = {block.coupling.channels, len(block.affine.shift), len(block.permutation.index)}
    return block if len(channels) == 1 and block.coupling.fuses(x, *flows) else None


class FlowSequence(Flow):
    """The composition of flows, first to last; log-dets add up (SANFlow, Eq. 3).

    Its event is `"sample"` as soon as one member's is; the log-dets of the others are then summed over the locations.

    Args:
        flows: at least one; all are given the same context.

    Example:
        >>> import torch
        >>> from semflow.flows import AffineCoupling, GlobalAffine, HardPermutation
        >>> flow = FlowSequence([AffineCoupling(8), GlobalAffine(8), HardPermutation(8)])
        >>> x = torch.randn(2, 8, 4, 4)
        >>> z, log_det = flow(x)
        >>> torch.allclose(flow.inverse(z), x, atol=1e-5), log_det.shape
        (True, torch.Size([2, 4, 4]))
    """

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        if not len(self.flows):
            raise ConfigError("flows must hold at least one flow, but got none")
        for position, flow in enumerate(self.flows):
            if getattr(flow, "event", None) not in ("location", "sample"):
                raise ConfigError(
                    f"flows[{position}] ({type(flow).__name__}) must declare event as 'location' or 'sample', "
                    f"but got {getattr(flow, 'event', None)!r}"
                )
        self.event = "sample" if any(flow.event == "sample" for flow in self.flows) else "location"

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Through all flows; the sum of their log-dets, (B, H, W) or (B,) after `event`."""
        total: Tensor | None = None
        for flow in self._steps(x):
            x, log_det = flow(x, context)
            if self.event == "sample" and flow.event == "location":
                log_det = log_det.sum((1, 2))
            total = log_det if total is None else total + log_det
        return x, cast(Tensor, total)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Back through all flows, last to first."""
        for flow in reversed(self.flows):
            z = cast(Flow, flow).inverse(z, context)
        return z

    def _steps(self, x: Tensor) -> Iterator[Any]:
        """The flows, or blocks of them that go as one step."""
        position = 0
        while position < len(self.flows):
            block = _block(list(self.flows[position : position + 3]), x)
            yield block or self.flows[position]
            position += 3 if block else 1

    def __len__(self) -> int:
        return len(self.flows)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.flows)

    def __getitem__(self, index: int) -> nn.Module:
        return self.flows[index]
