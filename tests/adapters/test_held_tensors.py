"""Tensors that flows of other libraries hold are trained, moved and saved, and README's snippet trains them."""

import copy
import functools
import pickle
import re
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.retrofit.__main__ import parse
from benchmarks.retrofit.model import VARIANTS
from torch import Tensor, nn
from torch.distributions import Normal, constraints
from torch.distributions import transforms as T

from helpers.library_cases import need
from helpers.real_features import real_features
from semflow.adapters import CallableFlow, as_flow, with_statistics
from semflow.errors import ConfigError
from semflow.flows import GlobalAffine
from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance, LearnedPosition2d

C = 4
README = Path(__file__).resolve().parents[2] / "README.md"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def learned(value: float = 1.0) -> Tensor:
    return torch.full((C,), value, requires_grad=True)


class Scale(T.Transform):
    """Scale of vectors by what `self.get()` returns."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, holder: Any, get: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.holder, self.get = holder, get

    def _call(self, z: Tensor) -> Tensor:
        return z * self.get(self.holder)

    def _inverse(self, x: Tensor) -> Tensor:
        return x / self.get(self.holder)

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self.get(self.holder).log().sum().expand(z.shape[:-1])


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale


class Plain:
    """A flow that is no module."""

    def __init__(self, scale: Tensor) -> None:
        self.layers = [{"scale": scale}]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.layers[0]["scale"]
        return x * scale, scale.log().sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z / self.layers[0]["scale"]


class Forgetful(nn.Module):
    """A module that does not register its scale, and some fixed tensor."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale, self.fixed = [scale], torch.zeros(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.scale[0], self.scale[0].log().sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z / self.scale[0]


def functions(scale: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def helper() -> Tensor:
        return scale

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * helper(), scale.log().sum().expand(len(x))

    return function, lambda z: z / helper()


def scaled(scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return x * scale, scale.log().sum().expand(len(x))


def unscaled(z: Tensor) -> Tensor:
    return z / GLOBAL


def scaled_by_global(x: Tensor) -> tuple[Tensor, Tensor]:
    return scaled(GLOBAL, x)


GLOBAL = torch.ones(C)


def by_global(scale: Tensor) -> Any:
    names = {**globals(), "GLOBAL": scale}
    forward, inverse = (types.FunctionType(f.__code__, names) for f in (scaled_by_global, unscaled))
    return CallableFlow(forward, "location", inverse)


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "attribute": lambda s: as_flow(T.AffineTransform(torch.zeros(C), s)),
    "inverse": lambda s: as_flow(T.AffineTransform(torch.zeros(C), s).inv),
    "composition": lambda s: as_flow(T.ComposeTransform([T.ExpTransform(), T.AffineTransform(0.0, s)])),
    "independent": lambda s: as_flow(T.IndependentTransform(T.AffineTransform(0.0, s), 1)),
    "nested": lambda s: as_flow([T.IndependentTransform(T.ComposeTransform([T.AffineTransform(0.0, s)]).inv, 1)]),
    "distribution of a transform": lambda s: as_flow(T.CumulativeDistributionTransform(Normal(torch.zeros(C), s)).inv),
    "power": lambda s: as_flow([T.ExpTransform(), T.PowerTransform(s)]),
    "list": lambda s: as_flow(Scale([s], lambda h: h[0])),
    "dict": lambda s: as_flow(Scale({"a b.c": s}, lambda h: h["a b.c"])),
    "object": lambda s: as_flow(Scale(types.SimpleNamespace(s=s), lambda h: h.s)),
    "slots": lambda s: as_flow(Scale(Slotted(s), lambda h: h.scale)),
    "closure in an attribute": lambda s: as_flow(Scale(None, lambda h: s)),
    "closure": lambda s: CallableFlow(*_pair(functions(s))),
    "global": by_global,
    "partial": lambda s: CallableFlow(functools.partial(scaled, s), "location", lambda z: z / s),
    "plain object": lambda s: as_flow(Plain(s), "location"),
    "method": lambda s: CallableFlow(Plain(s).__call__, "location", Plain(s).inverse),
    "module": lambda s: as_flow(Forgetful(s), "location"),
}  # fmt: skip


def _pair(pair: tuple[Callable[..., Any], Callable[..., Any]]) -> tuple[Any, Any, Any]:
    return pair[0], "location", pair[1]


@pytest.mark.parametrize("name", HOLDERS)
def test_plain_tensor_that_requires_gradients_trains_moves_and_is_saved(name: str) -> None:
    scale, x = learned(), noise(6, C, 2, 3).abs() * 0.5 + 0.2
    flow = HOLDERS[name](scale)
    assert [id(p) for p in flow.parameters()] == [id(scale)]
    model = with_statistics(flow, InverseGammaVariance(FeatureStatisticsNetwork(C, filters=8), mode=1.0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            model.loss(x).total.backward()
            optimizer.step()
    assert (scale != 1).all()
    z, log_det = flow(x)

    other = HOLDERS[name](learned(3.0))
    assert not torch.allclose(other(x)[0], z)
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other(x)[0], z)
    assigned = HOLDERS[name](learned(3.0))
    assigned.load_state_dict(flow.state_dict(), assign=True)
    assert torch.equal(assigned(x)[1], log_det)

    copied = copy.deepcopy(flow)
    if name in ("closure", "global", "closure in an attribute"):  # functions are not copied
        with pytest.warns(UserWarning, match="cannot be found"):
            copied(x)
    else:
        assert torch.equal(copied(x)[0], z)
        assert copied(x)[1].grad_fn is not None
    flow.double()
    assert flow(x.double())[0].dtype == scale.dtype == torch.float64
    flow.float()
    assert torch.equal(flow(x)[0], z)
    flow.to("meta").to_empty(device="cpu").load_state_dict(other.state_dict())
    assert torch.equal(flow(x)[0], z)
    model.loss(x).total.backward()
    assert scale.grad is not None


def test_fixed_tensors_move_and_are_saved_and_stay_fixed() -> None:
    def make(order: list[int]) -> tuple[Any, Tensor]:
        index, shift = torch.tensor(order), torch.zeros(1).expand(C)

        def permuted(x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, index] + shift, torch.zeros_like(x[:, 0])

        return CallableFlow(permuted, "location", lambda z: (z - shift)[:, index.argsort()]), shift

    (flow, shift), (other, _) = make([2, 0, 3, 1]), make([0, 1, 2, 3])
    assert list(flow.parameters()) == []
    x = noise(2, C, 2, 3)
    assert not torch.equal(other(x)[0], flow(x)[0])
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other(x)[0], flow(x)[0])
    assert flow.double()(x.double())[0].dtype == shift.dtype == torch.float64
    restored = pickle.loads(pickle.dumps(as_flow(T.AffineTransform(shift, 2.0))))
    assert restored.double()(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("dense", [True, False])
def test_trainable_context_is_not_of_the_flow(dense: bool) -> None:
    class Shifted(Plain):
        def __call__(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return x + context, x[:, 0] * 0

    position = LearnedPosition2d(C, 5, 5)(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_flow(Shifted(torch.ones(C)), "location")(noise(2, C, 2, 3), position.dense() if dense else position)


def test_tensor_shared_by_two_flows_is_registered_in_both() -> None:
    scale = learned()
    affine = T.AffineTransform(scale, scale)
    assert [len(list(as_flow(affine).parameters())) for _ in range(2)] == [1, 1]
    assert len(list(with_statistics([affine, affine], None).parameters())) == 1


def test_module_in_a_plain_list_is_registered_once() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(C, C)
            self.others = [self.inner, nn.Linear(C, C)]

        forward = inverse = lambda self, x: (x, x[:, 0] * 0)

    flow = as_flow(Lists(), "location")
    assert len(list(flow.parameters())) == 4
    assert len(flow.state_dict()) == 4


def hidden(scale: Tensor) -> Any:
    """Return a flow whose scale is in an attribute of a Python module, which is not searched."""
    place = types.ModuleType("place")
    place.scale = scale  # type: ignore[attr-defined]
    return Plain.__new__(type("Hidden", (Plain,), {"layers": property(lambda self: [{"scale": place.scale}])}))


def test_first_call_warns_of_a_trainable_tensor_that_was_not_found() -> None:
    scale, x = learned(), noise(2, C, 2, 3)
    flow = as_flow(hidden(scale), "location")
    assert list(flow.parameters()) == []
    with torch.no_grad():
        flow(x)
    with pytest.warns(UserWarning, match=r"Hidden trains tensors .* of shape \(4,\): .*parameters=\[\.\.\.\]"):
        flow(x.requires_grad_())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow(x)  # once
        given = as_flow(hidden(scale), "location", parameters=[scale])
        given(2 * x)  # neither x nor what it was computed from are the flow's
    assert [id(p) for p in given.parameters()] == [id(scale)]
    assert given.double()(x.detach().double())[0].dtype == scale.dtype == torch.float64


REJECTED: dict[str, tuple[Callable[[], Any], str]] = {
    "computed": (
        lambda: as_flow(T.AffineTransform(0.0, learned().exp())),
        r"scale of AffineTransform must be a parameter itself .*ExpBackward0\); compute it in each call",
    ),
    "computed for a distribution": (
        lambda: as_flow(T.CumulativeDistributionTransform(Normal(0.0, learned()[:2]))),
        "scale of Normal must be a parameter itself",
    ),
    "computed for a closure": (
        lambda: CallableFlow(*_pair(functions(learned().exp()))),
        "scale of helper must be a parameter itself",
    ),
    "no gradient": (
        lambda: as_flow(Plain(learned()), "location", parameters=[torch.ones(2)]),
        r"parameters must be leaf tensors that require gradients, but got \(2,\) that is not",
    ),
    "no tensor": (
        lambda: as_flow(Plain(learned()), "location", parameters=[3]),  # type: ignore[list-item]
        "parameters must be leaf tensors that require gradients, but got builtins.int",
    ),
    "a flow of semflow": (
        lambda: as_flow(GlobalAffine(C), parameters=[learned()]),
        "parameters must be left out for .*GlobalAffine, but got 1; register them",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_tensors_that_cannot_be_registered_are_rejected(name: str) -> None:
    make, message = REJECTED[name]
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_transforms_of_pyro_in_compositions_and_objects_are_registered() -> None:
    need("pyro")
    made = pytest.importorskip("pyro.distributions.transforms")
    spline, coupling = made.Spline(C), made.affine_coupling(C, hidden_dims=[8])
    scale = learned(2.0)
    flow = as_flow(T.ComposeTransform([spline, T.ComposeTransform([coupling, T.AffineTransform(0.0, scale)]).inv]))
    right = {id(p) for part in (spline, coupling) for p in part.parameters()} | {id(scale)}
    assert {id(p) for p in flow.parameters()} == right


def test_readme_snippet_trains_the_flow_and_raises_the_held_out_likelihood() -> None:
    found = re.search(r"<!-- retrofit -->\n```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(found[1], names)
    loc, scale, model, optimizer = (names[name] for name in ("loc", "scale", "model", "optimizer"))
    assert (loc != 0).all()  # after the snippet's one step
    assert (scale != 1).all()
    train, test = (1.5 * x + 0.3 for x in real_features(40))

    def held_out() -> float:
        with torch.no_grad():
            likelihood: Tensor = model.log_prob(test)
        return likelihood.mean().item() / 40  # nats per dimension

    before, start = held_out(), scale.detach().clone()
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(train).total.backward()
        optimizer.step()
    assert held_out() > before + 0.1
    assert scale.mean() > start.mean() + 0.02
    assert loc.mean() > 0.02


def test_readme_guide_and_measurements_recommend_the_same_head() -> None:
    root = README.parent
    pages = [README, root / "docs" / "adapters.md", *sorted((root / "docs" / "adapters").glob("*.md"))]
    heads = [
        line for page in pages for line in re.findall(r"head = .*InverseGammaVariance\(.*", page.read_text("utf-8"))
    ]
    assert len(heads) >= 8
    pattern = r"InverseGammaVariance\((FeatureStatisticsNetwork\(\w+\)|networks), mode=1\.0\)$"
    assert [line for line in heads if not re.search(pattern, line)] == []
    assert parse(["--report"]).mode == 1.0
    assert "FeatureStatisticsNetwork" in VARIANTS["predicted"]


class _Parent(nn.Module):
    """Module that has a flow of functions of itself."""

    def __init__(self, bound: bool) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(C)), nn.Linear(1, C)
        self.register_buffer("offset", torch.full((C,), 0.5))
        encode = self.encode if bound else lambda x: self.encode(x)
        self.flow = CallableFlow(encode, "location", lambda z: (z - self.shift.bias - self.offset) / self.scale)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.scale + self.shift.bias + self.offset, self.scale.abs().log().sum().expand(len(x))


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("first", ["state_dict", "train", "double", "repr", "apply", "load"])
def test_flow_of_functions_of_its_parent_makes_no_cycle(bound: bool, first: str) -> None:
    parent, other, x = _Parent(bound), _Parent(bound), noise(2, C, 2, 3)
    calls: dict[str, Callable[[], Any]] = {
        "repr": lambda: repr(parent),
        "apply": lambda: parent.apply(lambda module: None),
        "load": lambda: parent.load_state_dict(_Parent(bound).state_dict()),
    }
    calls.get(first, lambda: getattr(parent, first)())()
    parent.double().float().train().eval()
    model = with_statistics(parent.flow, None)
    assert {id(p) for p in parent.parameters()} - {id(parent.shift.weight)} <= {id(p) for p in model.parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.loss(x).total.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert (parent.scale != 1).all()
    other.load_state_dict(parent.state_dict())
    assert torch.equal(other.flow(x)[0], parent.flow(x)[0])
    assert torch.allclose(parent.flow.inverse(parent.flow(x)[0]), x, atol=1e-5)
    copied = copy.deepcopy(parent)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in parent.parameters()}
