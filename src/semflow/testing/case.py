"""What a law is tried on: an own, perturbed copy of the flow and the tensors that go in."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from semflow.flows import Event, Flow
from semflow.nn import Context, PositionTables

__all__ = ["Case", "Finding", "deviation", "fact", "noise", "perturb", "scramble"]


class Finding(NamedTuple):
    """One measurement of a law: what must be, what came, and by how much it may and does deviate."""

    expected: str
    came: str
    deviation: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the deviation is allowed; a deviation that is not a number is not."""
        return self.deviation <= self.allowed


def fact(expected: str, came: str, holds: bool) -> Finding:
    """The finding of what holds or does not."""
    return Finding(expected, came, 0.0 if holds else float("inf"), 0.0)


@dataclass(frozen=True)
class Case:
    """A flow under test and its input; laws read it and change none of it."""

    module: nn.Module
    x: Tensor
    context: Context
    tolerance: float | None
    seed: int
    compile_backend: str | None
    factory: Callable[[], nn.Module] | None

    @property
    def flow(self) -> Flow:
        """The module, which is a flow by what it does, not by its class."""
        return cast(Flow, self.module)

    @property
    def event(self) -> Event:
        """As the flow declares it."""
        return self.flow.event

    def to(self, dtype: torch.dtype) -> "Case":
        """A copy in that precision; on the CPU where the device has no float64 (Apple's MPS)."""
        device = torch.device("cpu") if self.x.device.type == "mps" and dtype == torch.float64 else self.x.device
        context = self.context
        if isinstance(context, PositionTables):
            context = PositionTables(*(table.to(device, dtype) for table in context))
        elif isinstance(context, Tensor):
            context = context.to(device, dtype)
        module = deepcopy(self.module).to(device, dtype)
        return replace(self, module=module, x=self.x.to(device, dtype, copy=True), context=context)

    def context_of(self, image: int) -> Context:
        """The context of one image: a map of its own where each image has one, otherwise that of all."""
        if isinstance(self.context, Tensor) and self.context.dim() == 4 and len(self.context) == len(self.x):
            return self.context[image : image + 1]
        return self.context

    def generator(self) -> torch.Generator:
        """The same numbers for every law, whichever laws were tried before."""
        return torch.Generator().manual_seed(self.seed)

    def allowed(self, *results: Tensor) -> float:
        """How far results may deviate: as far as the narrowest of them can be trusted."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-6 if all(result.dtype == torch.float64 for result in results) else 1e-4

    def equal(self, expected: str, came: Tensor, right: Tensor) -> Finding:
        """The finding that `came` equals `right`."""
        allowed = self.allowed(came, right)
        off = deviation(came, right)
        dtype = str(came.dtype).removeprefix("torch.")
        return Finding(f"{expected} to {allowed:.1g} in {dtype}", f"it deviates by {off:.2g}", off, allowed)


def deviation(came: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest right number or to 1; infinite where it cannot be taken."""
    if came.shape != right.shape:
        return float("inf")
    if not came.numel():
        return 0.0
    difference = (came.detach() - right.detach()).abs().max().item() / max(1.0, right.detach().abs().max().item())
    return difference if difference == difference else float("inf")


def noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers that are the same in every precision and on every device."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


@torch.no_grad()
def perturb(module: nn.Module, scale: float, generator: torch.Generator) -> None:
    """Move every learned parameter, by `scale` of its size and of what keeps a layer's output of that order."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            size = parameter.square().mean().sqrt() + (parameter[0].numel() if parameter.dim() > 1 else 1) ** -0.5
            parameter.add_(scale * size * noise(parameter, generator))


@torch.no_grad()
def scramble(module: nn.Module, generator: torch.Generator) -> None:
    """Overwrite every tensor that a module holds, registered or not, as if it had been constructed anew."""
    for tensor in _tensors(module):
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.copy_(noise(tensor.real, generator) if tensor.is_complex() else noise(tensor, generator))
        elif tensor.dtype == torch.bool:
            tensor.logical_not_()
        elif tensor.numel() > 1:
            tensor.copy_(tensor.flatten().roll(1).view_as(tensor))  # an index stays within its range
        else:
            tensor.add_(1)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))
