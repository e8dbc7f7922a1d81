"""Input of a law: a perturbed copy of the flow with its tensors, and the findings that laws yield."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from semflow.flows import Event, Flow
from semflow.nn import Context, PositionTables


class Finding(NamedTuple):
    """One measurement of a law: a claim "... must ...", what was found instead, and the deviation."""

    claim: str
    found: str
    deviation: float
    allowed: float

    @property
    def holds(self) -> bool:
        """True if the deviation is allowed; NaN is not."""
        return self.deviation <= self.allowed


def fact(claim: str, found: str, holds: bool) -> Finding:
    """Make the finding of a claim that holds or not."""
    return Finding(claim, found, 0.0 if holds else float("inf"), 0.0)


@dataclass(frozen=True)
class Case:
    """A flow under test and its input, which laws do not change."""

    module: nn.Module
    x: Tensor
    context: Context
    tolerance: float | None
    seed: int
    compile_backend: str | None
    factory: Callable[[], nn.Module] | None

    @property
    def flow(self) -> Flow:
        """The module as a flow, whatever its class."""
        return cast(Flow, self.module)

    @property
    def event(self) -> Event:
        """The event that the flow declares."""
        return self.flow.event

    def to(self, dtype: torch.dtype) -> "Case":
        """Copy to a dtype; float64 goes to the CPU if the device does not support it (Apple's MPS)."""
        device = torch.device("cpu") if self.x.device.type == "mps" and dtype == torch.float64 else self.x.device
        context = self.context
        if isinstance(context, PositionTables):
            context = PositionTables(*(table.to(device, dtype) for table in context))
        elif isinstance(context, Tensor):
            context = context.to(device, dtype)
        module = deepcopy(self.module).to(device, dtype)
        return replace(self, module=module, x=self.x.to(device, dtype, copy=True), context=context)

    def context_of(self, image: int) -> Context:
        """Return the context of one image."""
        if isinstance(self.context, Tensor) and self.context.dim() == 4 and len(self.context) == len(self.x):
            return self.context[image : image + 1]
        return self.context

    def generator(self) -> torch.Generator:
        """Return a generator with the seed of the case, so that laws do not depend on their order."""
        return torch.Generator().manual_seed(self.seed)

    def equal(self, claim: str, found: Tensor, right: Tensor) -> Finding:
        """Make the finding that two tensors are equal up to the tolerance, 1e-6 if both are float64, otherwise 1e-4."""
        default = 1e-6 if found.dtype == right.dtype == torch.float64 else 1e-4
        allowed = default if self.tolerance is None else self.tolerance
        off = _deviation(found, right)
        dtype = str(found.dtype).removeprefix("torch.")
        return Finding(f"{claim} to {allowed:.1g} in {dtype}", f"a deviation of {off:.2g}", off, allowed)


def _deviation(found: Tensor, right: Tensor) -> float:
    """Return the largest difference relative to the largest right value or 1; inf for other shapes and NaN."""
    if found.shape != right.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    difference = (found.detach() - right.detach()).abs().max().item() / max(1.0, right.detach().abs().max().item())
    return difference if difference == difference else float("inf")


def noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers that are the same for every dtype and device."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


@torch.no_grad()
def perturb(module: nn.Module, scale: float, generator: torch.Generator) -> None:
    """Add noise to every learned parameter, relative to its size and to the size that keeps a layer's output near 1."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            size = parameter.square().mean().sqrt() + (parameter[0].numel() if parameter.dim() > 1 else 1) ** -0.5
            parameter.add_(scale * size * noise(parameter, generator))


@torch.no_grad()
def scramble(module: nn.Module, generator: torch.Generator) -> None:
    """Overwrite every tensor of a module, registered or not, as if the module were another instance."""
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
