"""FrEIA flows with perturbed parameters, and a comparison of their results with converted or wrapped flows."""

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

# Test modules import FrEIA from here, and skip if it is not installed.
framework = pytest.importorskip("FrEIA.framework", reason='needs FrEIA: pip install "semflow[freia]"')
modules = pytest.importorskip("FrEIA.modules")
SequenceINN, AllInOneBlock = framework.SequenceINN, modules.AllInOneBlock

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
D = 8


@contextmanager
def surroundings(seed: int = 0, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Seed the global generators and set the default dtype, which FrEIA uses; restore both afterwards."""
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
    """Return the subnet of CFLOW-AD and SANFlow."""
    return nn.Sequential(nn.Linear(inputs, 2 * inputs, bias), nn.ReLU(), nn.Linear(2 * inputs, outputs, bias))


def convolution(
    inputs: int, outputs: int, kernel: int = 3, padding: str | int | None = None, bias: bool = True
) -> nn.Sequential:
    """Return the subnet of FastFlow."""
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
"""Subnets by the layout of their input: vectors (N, C), locations (B H W, C), vectors (N, C, 1, 1), maps."""

SIZES = {"vector": (), "rows": (), "point": (1, 1), "map 1x1": (3, 4), "map 3x3": (3, 4), "map same 5x5": (3, 4)}


@torch.no_grad()
def perturb(module: nn.Module, seed: int, strength: float) -> None:
    """Perturb all parameters, so that global scales lie between a tenth and ten.

    `strength` is a layer's gain. With 3 the clamps saturate; a stack of blocks is then chaotic and amplifies rounding
    errors, so it gets 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            fan_in = parameter[0].numel() if parameter.dim() > 1 and "global" not in name else 4
            size = max(0.7, 0.3 * parameter.abs().max().item()) if "global_scale" in name else strength * fan_in**-0.5
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def block(layout: str, channels: int, condition: int = 0, seed: int = 0, **options: Any) -> AllInOneBlock:
    """Return one perturbed block in the default dtype."""
    given = {"subnet_constructor": SUBNETS[layout], "dims_c": [(condition, *SIZES[layout])] if condition else []}
    made = AllInOneBlock([(channels, *SIZES[layout])], **given | options)
    made.to(torch.get_default_dtype())
    perturb(made, seed, 3.0)
    return made


def sequence(layout: str, channels: int, blocks: Sequence[dict[str, Any]], condition: int = 0) -> SequenceINN:
    """Return several perturbed blocks with their own options; `cond=None` makes one unconditional."""
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
    """Return x and the context: position tables if FrEIA's rows are locations, otherwise one map per image."""
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
    """Return FrEIA's z as maps, and its log-det, per location if it works on locations, otherwise per sample."""
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


def deviation(actual: Tensor, right: Tensor) -> float:
    """Return the largest difference relative to the largest expected value, or to 1."""
    assert actual.shape == right.shape
    assert actual.dtype == right.dtype
    return ((actual - right).abs().max() / right.abs().max().clamp(min=1)).item()


@torch.no_grad()
def assert_same(
    theirs: nn.Module, ours: Flow, layout: str, x: Tensor, context: Context, amplification: float = 0.0
) -> None:
    """Assert that z, log-det and the inverse agree as closely as the dtype allows, and that the event is right.

    `amplification`: how much larger the rounding errors of the inverse may be than those of z.
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
