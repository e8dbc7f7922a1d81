"""Flows of FrEIA with parameters far from their start, and both sides' results on the same numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semflow.flows import Flow
from semflow.functional import to_locations
from semflow.nn import Context, PositionTables

# Test modules take all of FrEIA from here: where it is not installed they skip.
framework = pytest.importorskip("FrEIA.framework", reason='needs FrEIA: pip install "semflow[freia]"')
modules = pytest.importorskip("FrEIA.modules")
SequenceINN, AllInOneBlock = framework.SequenceINN, modules.AllInOneBlock

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
D = 8


@contextmanager
def surroundings(seed: int = 0, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """FrEIA draws from global generators and makes constants in the default dtype: both as they were, afterwards."""
    numpy_state, before = np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
            np.random.set_state(numpy_state)  # noqa: NPY002


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """CFLOW-AD's and SANFlow's subnet."""
    return nn.Sequential(nn.Linear(inputs, 2 * inputs, bias), nn.ReLU(), nn.Linear(2 * inputs, outputs, bias))


def convolution(
    inputs: int, outputs: int, kernel: int = 3, padding: str | int | None = None, bias: bool = True
) -> nn.Sequential:
    """FastFlow's subnet."""
    make = partial(nn.Conv2d, kernel_size=kernel, padding=kernel // 2 if padding is None else padding, bias=bias)
    return nn.Sequential(make(inputs, inputs), nn.ReLU(inplace=True), make(inputs, outputs))


SUBNETS = {
    "vector": linear,
    "rows": linear,
    "point": partial(convolution, kernel=1),
    "map 1x1": partial(convolution, kernel=1),
    "map 3x3": convolution,
    "map same 5x5": partial(convolution, kernel=5, padding="same"),
}
"""By the layout of what they are given: vectors (N, C), locations (B H W, C), vectors (N, C, 1, 1), maps."""

SIZES = {"vector": (), "rows": (), "point": (1, 1), "map 1x1": (3, 4), "map 3x3": (3, 4), "map same 5x5": (3, 4)}


@torch.no_grad()
def perturb(module: nn.Module, seed: int, strength: float) -> None:
    """Everything learned moves as far as it is large: global scales lie between a tenth and ten.

    `strength` is a layer's gain. With 3 the clamps saturate; a stack of blocks is then chaotic, and multiplies the
    last digit of a block so that no two orders of summation agree: it gets 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            fan_in = parameter[0].numel() if parameter.dim() > 1 and "global" not in name else 4
            size = max(0.7, 0.3 * parameter.abs().max().item()) if "global_scale" in name else strength * fan_in**-0.5
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def block(layout: str, channels: int, condition: int = 0, seed: int = 0, **options: Any) -> AllInOneBlock:
    """One block, perturbed, in the default dtype."""
    given = {"subnet_constructor": SUBNETS[layout], "dims_c": [(condition, *SIZES[layout])] if condition else []}
    made = AllInOneBlock([(channels, *SIZES[layout])], **given | options)
    made.to(torch.get_default_dtype())
    perturb(made, seed, 3.0)
    return made


def sequence(layout: str, channels: int, blocks: Sequence[dict[str, Any]], condition: int = 0) -> SequenceINN:
    """Several blocks, each with options of its own; `cond=None` among them makes one unconditional."""
    made = SequenceINN(channels, *SIZES[layout])
    for options in blocks:
        given = {"subnet_constructor": SUBNETS[layout]} | options
        if condition and "cond" not in given:
            given["cond"] = 0
        if given.get("cond") is not None:
            given["cond_shape"] = (condition, *SIZES[layout])
        made.append(AllInOneBlock, **given)
    made.to(torch.get_default_dtype())
    perturb(made, 0, 1.0)
    return made


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(torch.get_default_dtype())


def inputs(layout: str, channels: int, condition: int) -> tuple[Tensor, Context]:
    """x, and the context: tables where the rows of FrEIA are the locations of a map, otherwise a map for each."""
    height, width = SIZES[layout][:2] if len(SIZES[layout]) == 2 else ((2, 3) if layout == "rows" else (1, 1))
    x = draw(3, channels, height, width, seed=1)
    if not condition:
        return x, None
    if layout == "rows":
        return x, PositionTables(draw(width, condition // 2, seed=2), draw(height, condition // 2, seed=3))
    return x, draw(3, condition, height, width, seed=4)


def to_theirs(layout: str, x: Tensor) -> Tensor:
    return to_locations(x) if not SIZES[layout] else x


def from_theirs(layout: str, x: Tensor, like: Tensor) -> Tensor:
    if SIZES[layout]:
        return x
    batch, channels, height, width = like.shape
    return x.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def run_theirs(
    theirs: nn.Module, layout: str, x: Tensor, context: Context, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """What FrEIA gives, as a map; and its log-det, of each location where it works on locations, else of the sample."""
    conditions = []
    if context is not None:
        dense = context.dense() if isinstance(context, PositionTables) else context
        conditions = [to_theirs(layout, dense.expand(len(x), -1, -1, -1))]
    given = to_theirs(layout, x)
    is_block = isinstance(theirs, AllInOneBlock)
    with torch.no_grad():
        z, log_det = theirs([given] if is_block else given, c=conditions, rev=inverse)
    z = z[0] if is_block else z
    return from_theirs(layout, z, x), log_det if SIZES[layout] else log_det.view(len(x), *x.shape[2:])


def deviation(came: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest right number or to 1."""
    assert came.shape == right.shape
    assert came.dtype == right.dtype
    return ((came - right).abs().max() / right.abs().max().clamp(min=1)).item()


@torch.no_grad()
def assert_same(
    theirs: nn.Module, ours: Flow, layout: str, x: Tensor, context: Context, amplification: float = 0.0
) -> None:
    """z, log-det and the inverse agree as closely as the dtype allows, and the log-det is over what it should be.

    `amplification`: how much larger than z's own rounding that of the inverse may be, on either side.
    """
    allowed = TOLERANCE[x.dtype]
    z, log_det = run_theirs(theirs, layout, x, context)
    our_z, our_log_det = ours(x, context)
    assert ours.event == ("sample" if layout in ("map 3x3", "map same 5x5") else "location")
    if SIZES[layout] and ours.event == "location":
        our_log_det = our_log_det.sum((1, 2))
    assert deviation(our_z, z) < allowed
    assert deviation(our_log_det, log_det) < allowed
    back = run_theirs(theirs, layout, z, context, inverse=True)[0]
    assert deviation(ours.inverse(z, context), back) < allowed * max(1.0, amplification * z.abs().max().item())
