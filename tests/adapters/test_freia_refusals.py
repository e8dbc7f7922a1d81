"""from_freia rejects modules that it cannot convert with one line that names the block and the option."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.freia_cases import (
    SUBNETS,
    AllInOneBlock,
    SequenceINN,
    block,
    convolution,
    framework,
    linear,
    modules,
    sequence,
    surroundings,
)
from semflow.adapters import from_freia
from semflow.errors import ConfigError


def with_subnet(layout: str, make: Callable[[int, int], nn.Module]) -> nn.Module:
    return block(layout, 6, subnet_constructor=make)


def followed_by(*more: tuple[type, dict[str, Any]]) -> nn.Module:
    made = sequence("rows", 6, [{}])
    for kind, options in more:
        made.append(kind, **options)
    return made


def graph() -> nn.Module:
    node = framework.InputNode(6)
    return framework.GraphINN([node, framework.OutputNode(node)])


def deep(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))


def with_layers(*layers: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Sequential]:
    return lambda inputs, outputs: nn.Sequential(layers[0](inputs, 8), *(make(8, outputs) for make in layers[1:]))


conv = partial(nn.Conv2d, kernel_size=3, padding=1)


def relu(_inputs: int, _outputs: int) -> nn.Module:
    return nn.ReLU()


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gin": (lambda: block("rows", 6, gin_block=True), "module: gin_block must be False, but got True; .*as_flow"),
    "gin in a sequence": (
        lambda: sequence("map 3x3", 6, [{}, {"gin_block": True}]),
        r"module_list\[1\]: gin_block must be False",
    ),
    "glow": (
        lambda: followed_by((modules.GLOWCouplingBlock, {"subnet_constructor": linear})),
        r"module_list\[1\] must be an AllInOneBlock, but got GLOWCouplingBlock; .*as_flow",
    ),
    "permutation": (
        lambda: followed_by((modules.PermuteRandom, {})),
        r"module_list\[1\] must be an AllInOneBlock, but got PermuteRandom",
    ),
    "graph": (graph, "module must be FrEIA's AllInOneBlock or a SequenceINN of them, but got FrEIA.*GraphINN"),
    "no flow": (lambda: nn.Linear(2, 2), "module must be FrEIA's .*, but got torch.nn.modules.linear.Linear"),
    "empty": (lambda: SequenceINN(6), "inn must hold at least one block"),
    "two conditions": (
        lambda: sequence("rows", 6, [{"cond": 0}, {"cond": 1}], condition=4),
        r"cond must be the same for all blocks .* but got \[0, 1\]",
    ),
    "signals": (
        lambda: AllInOneBlock([(6, 9)], subnet_constructor=partial(nn.Conv1d, kernel_size=1)),
        r"dims_in must be \(C,\) or \(C, H, W\), but got \(6, 9\)",
    ),
    "one channel": (
        lambda: block("rows", 1, subnet_constructor=lambda i, o: nn.Identity()),
        "dims_in must have at least 2 channels, but got 1",
    ),
    "deep subnet": (
        lambda: with_subnet("rows", deep),
        r"module: the subnet must be Sequential\(Linear, ReLU, Linear\) .*\(Linear, ReLU, Linear, ReLU, Linear\)",
    ),
    "one layer": (lambda: with_subnet("rows", nn.Linear), r"the subnet must be .* but got Linear\(\)"),
    "two layers": (
        lambda: with_subnet("rows", lambda i, o: nn.Sequential(nn.Linear(i, o), nn.ReLU())),
        r"got Sequential\(Linear, ReLU\)",
    ),
    "other activation": (
        lambda: with_subnet("rows", with_layers(nn.Linear, lambda i, o: nn.GELU(), nn.Linear)),
        r"got Sequential\(Linear, GELU, Linear\)",
    ),
    "linear on maps": (
        lambda: block("map 1x1", 4, subnet_constructor=linear),
        r"the subnet must be Sequential\(Conv2d, ReLU, Conv2d\) for inputs of 3 dimensions, .*Sequential\(Linear, ReLU",
    ),
    "two kernels": (
        lambda: with_subnet("map 3x3", with_layers(conv, relu, partial(nn.Conv2d, kernel_size=1))),
        r"must have one odd square kernel size, .* but got Conv2d",
    ),
    "stride": (
        lambda: with_subnet("map 3x3", with_layers(partial(conv, stride=2), relu, conv)),
        "must have one odd square kernel size, .* but got Conv2d",
    ),
    "padding": (
        lambda: with_subnet("map 3x3", partial(convolution, padding=0)),
        "must have one odd square kernel size, .* but got Conv2d",
    ),
    "even kernel": (
        lambda: with_subnet("map 3x3", partial(convolution, kernel=4, padding="same")),
        "must have one odd square kernel size, .* but got Conv2d",
    ),
    "reflecting": (
        lambda: with_subnet("map 3x3", with_layers(partial(conv, padding_mode="reflect"), relu, conv)),
        "must have one odd square kernel size, .* but got Conv2d",
    ),
    "dilated": (
        lambda: with_subnet("map 3x3", with_layers(partial(conv, dilation=2, padding=2), relu, conv)),
        "must have one odd square kernel size, .* but got Conv2d",
    ),
    "groups": (
        lambda: with_subnet("map 3x3", with_layers(conv, relu, partial(conv, groups=2))),
        "must have one odd square kernel size, .* but got Conv2d",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_from_freia_rejects_unsupported_modules(name: str) -> None:
    make, message = CASES[name]
    with surroundings():
        module = make()
        with pytest.raises(ConfigError, match=message) as caught:
            from_freia(module)
    assert "\n" not in str(caught.value)


class OtherClamp(AllInOneBlock):
    """A copy that clamps with arctan."""

    def _affine(self, x: Tensor, a: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        s, t = (0.1 * a).split(x.shape[1], dim=1)
        s = self.clamp * torch.atan(s)
        return x * s.exp() + t, s.flatten(1).sum(1)


class OtherGain(AllInOneBlock):
    """A copy without FrEIA's factor of a tenth."""

    def _affine(self, x: Tensor, a: Tensor, rev: bool = False) -> Any:
        return super()._affine(x, 10 * a, rev)


class OtherOrder(AllInOneBlock):
    """A copy that reverses the channels of the condition."""

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        mixed = [torch.flip(condition, (1,)) for condition in c]
        return super().forward(x, mixed, rev, jac)


class OtherLogDet(AllInOneBlock):
    """A copy with another log-det."""

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        z, log_det = super().forward(x, c, rev, jac)
        return z, log_det + 0.5


class Broken(AllInOneBlock):
    """A copy that fails on inputs of its own shape."""

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        raise RuntimeError("first line\nsecond line")


@pytest.mark.parametrize("layout", ["rows", "map 3x3"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OtherClamp, "the coupling must be FrEIA's, .* but got another from .*OtherClamp"),
        (OtherGain, "the coupling must be FrEIA's, .* but got another from .*OtherGain"),
        (OtherOrder, "must compute the same as FrEIA's AllInOneBlock, but got results of .*OtherOrder that differ"),
        (OtherLogDet, "must compute the same as FrEIA's AllInOneBlock, but got results of .*OtherLogDet that differ"),
        (Broken, r"must take \(2, 6.*but got RuntimeError: first line$"),
    ],
)
def test_from_freia_rejects_copies_that_compute_another_function(kind: type, message: str, layout: str) -> None:
    """They have the same attributes, so a conversion would silently give wrong likelihoods."""
    with surroundings():
        changed = block(layout, 6, 4, subnet_constructor=SUBNETS[layout])
        from_freia(changed)
        changed.__class__ = kind
        with pytest.raises(ConfigError, match=message) as caught:
            from_freia(changed)
    assert "\n" not in str(caught.value)
