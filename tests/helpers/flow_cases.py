"""The flows under test, by name: `CASES[name](channels)` gives a flow, and `context_of(flow, ...)` what it is given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from semflow.flows import (
    AffineCoupling,
    Flow,
    FlowSequence,
    GlobalAffine,
    HardPermutation,
    Identity,
    SoftPermutation,
    SplineCoupling,
    Standardize,
)
from semflow.nn import Context, ConvSubnet, LocationSubnet, SinusoidalPosition2d

D = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def standardize(channels: int) -> Standardize:
    offsets = torch.linspace(-2, 3, channels)[:, None, None]
    return Standardize(channels).fit([3 * torch.randn(4, channels, 6, 6, generator=generator()) + offsets])


def blocks(channels: int, count: int = 8) -> FlowSequence:
    parts = (
        (
            AffineCoupling(channels, partial(LocationSubnet, hidden=16), context_channels=D, swap=bool(i % 2)),
            GlobalAffine(channels),
            HardPermutation(channels, generator(i)),
        )
        for i in range(count)
    )
    return FlowSequence(part for block in parts for part in block)


def mixed(channels: int) -> FlowSequence:
    return FlowSequence(
        [
            standardize(channels),
            AffineCoupling(channels),
            SoftPermutation(channels, generator()),
            AffineCoupling(channels, ConvSubnet, context_channels=D, swap=True),
        ]
    )


CASES: dict[str, Callable[[int], Flow]] = {
    "location": AffineCoupling,
    "location-swap-tanh_unit": partial(AffineCoupling, swap=True, clamp_form="tanh_unit"),
    "location-context-atan": partial(AffineCoupling, context_channels=D, clamp_form="atan"),
    "conv": partial(AffineCoupling, subnet=partial(ConvSubnet, hidden=6)),
    "conv-context-swap": partial(AffineCoupling, subnet=partial(ConvSubnet, hidden=6), context_channels=D, swap=True),
    "conv-1x1": partial(AffineCoupling, subnet=partial(ConvSubnet, kernel=1)),
    "spline": SplineCoupling,
    "spline-context-swap": partial(SplineCoupling, context_channels=D, swap=True, bins=3, bound=1.0),
    "spline-conv": partial(SplineCoupling, subnet=partial(ConvSubnet, hidden=6), clamp_form="atan"),
    "global-affine": GlobalAffine,
    "global-affine-start": partial(GlobalAffine, start=0.3),
    "identity": Identity,
    "hard-permutation": lambda channels: HardPermutation(channels, generator()),
    "soft-permutation": lambda channels: SoftPermutation(channels, generator()),
    "standardize": standardize,
    "eight-blocks": blocks,
    "mixed-events": mixed,
}


def context_channels(flow: torch.nn.Module) -> int:
    return max((getattr(part, "context_channels", 0) for part in flow.modules()), default=0)


def context_of(flow: torch.nn.Module, height: int, width: int) -> Context:
    return SinusoidalPosition2d(D)(height, width) if context_channels(flow) else None


def features(batch: int, channels: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=generator(seed))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Flows keep constants in the default dtype of their construction."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
