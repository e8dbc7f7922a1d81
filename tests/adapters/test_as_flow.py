"""as_flow with callables and torch's transforms, rejected arguments, and missing libraries."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, constraints, transforms

from semflow.adapters import CallableFlow, NFlowsFlow, NormflowsFlow, TransformFlow, ZukoFlow, as_flow
from semflow.errors import ConfigError, SemflowError, ShapeError
from semflow.flows import FlowSequence, GlobalAffine
from semflow.testing import LawError, check_flow


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Vectors(nn.Module):
    """Flow of vectors (N, C): z = x exp(s)."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.linspace(-0.5, 1, channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() != 2:
            raise ValueError(f"wanted vectors, got {x.dim()} dimensions")
        return x * self.s.exp(), self.s.sum().expand(len(x))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * (-self.s).exp(), -self.s.sum().expand(len(z))


class Maps(Vectors):
    """The same flow of maps, shifted by the context, with a log-det per location or per sample."""

    def __init__(self, event: str) -> None:
        super().__init__()
        self.of = event

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z = x * self.s.exp()[:, None, None] + (0 if context is None else context)
        size = x.shape[2] * x.shape[3]
        return z, self.s.sum().expand(len(x), *x.shape[2:]) if self.of == "location" else size * self.s.sum().expand(
            len(x)
        )

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return (z - (0 if context is None else context)) * (-self.s).exp()[:, None, None]


@pytest.mark.parametrize(
    ("make", "context"),
    [
        (lambda: as_flow(Vectors(), "location"), None),
        (lambda: as_flow(Maps("sample"), "sample"), None),
        (lambda: as_flow(Maps("sample"), "sample"), noise(2, 4, 2, 3)),
        (lambda: CallableFlow(Maps("location"), "location", maps=True), noise(4, 2, 3)),
    ],
    ids=["vectors", "maps", "maps with context", "maps by location"],
)
def test_callable_flow_satisfies_the_flow_laws(make: Callable[[], nn.Module], context: Tensor | None) -> None:
    check_flow(make(), noise(2, 4, 2, 3), context, factory=make)


@pytest.mark.parametrize(
    ("flow", "declared", "right"),
    [
        (Vectors(), "sample", "location"),
        (Maps("sample"), "location", "sample"),
    ],
)
def test_check_flow_names_a_wrongly_declared_event(flow: nn.Module, declared: Any, right: str) -> None:
    with pytest.raises(LawError, match=f"if event is '{declared}', but .*its event is '{right}'"):
        check_flow(as_flow(flow, declared), noise(2, 4, 2, 3), compile_backend=None)


@pytest.mark.parametrize(("event", "shape"), [("sample", r"\(2, 2, 3\)"), ("location", r"\(2,\)")])
def test_log_det_of_the_other_event_is_rejected(event: Any, shape: str) -> None:
    """It matters most if the batch and the width are equal: (B, H, W) plus (B,) would broadcast silently."""
    flow = CallableFlow(Maps("sample" if event == "location" else "location"), event, maps=True)
    with pytest.raises(ShapeError, match=rf"log_det must be .* if event is '{event}', but got {shape}"):
        flow(noise(2, 4, 2, 3))
    with pytest.raises(ShapeError, match="log_det must be"):
        flow(noise(3, 4, 3, 3))


def test_callable_flow_registers_the_module_of_a_method() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Vectors()

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x)

        def decode(self, z: Tensor) -> Tensor:
            return self.inner.inverse(z)[0]

    model = Model()
    flow = CallableFlow(model.encode, "location", inverse=model.decode)
    assert [id(p) for p in flow.parameters()] == [id(model.inner.s)]
    z, log_det = flow(noise(2, 4, 2, 3))
    log_det.sum().backward()
    assert model.inner.s.grad is not None
    assert torch.allclose(flow.inverse(z), noise(2, 4, 2, 3), atol=1e-6)


def test_as_flow_returns_a_semflow_flow_unchanged() -> None:
    flow = FlowSequence([GlobalAffine(4)])
    assert as_flow(flow) is flow
    assert as_flow(flow, "location") is flow
    with pytest.raises(ConfigError, match="event must be 'location' for FlowSequence, but got 'sample'; leave it out"):
        as_flow(flow, "sample")


@pytest.mark.parametrize("direction", ["z_to_x", "x_to_z"])
def test_transform_flow_follows_its_direction(direction: Any) -> None:
    affine = transforms.AffineTransform(1.0, 4.0)
    x = noise(2, 4, 2, 3)
    z, log_det = TransformFlow(affine, direction=direction)(x)
    right = (x - 1) / 4 if direction == "z_to_x" else 4 * x + 1
    sign = -1 if direction == "z_to_x" else 1
    assert torch.allclose(z, right)
    assert torch.allclose(log_det, torch.full((2, 2, 3), sign * 4 * torch.tensor(4.0).log()))
    turned, turned_log_det = TransformFlow(affine.inv)(x)  # the inverse goes the other way, also after a copy
    assert torch.allclose(turned, 4 * x + 1)
    assert torch.allclose(copy.deepcopy(TransformFlow(affine.inv))(x)[1], turned_log_det)


def test_transform_flow_registers_and_saves_parameters_of_plain_transforms() -> None:
    def make(scale: float) -> TransformFlow:
        inner = transforms.AffineTransform(nn.Parameter(torch.zeros(4)), nn.Parameter(torch.full((4,), scale)))
        return TransformFlow(transforms.IndependentTransform(inner.inv, 1))

    flow, other = make(2.0), make(3.0)
    assert len(list(flow.parameters())) == 2
    other.load_state_dict(flow.state_dict())
    x = noise(2, 4, 2, 3)
    assert torch.equal(other(x)[0], flow(x)[0])
    assert not torch.equal(make(3.0)(x)[0], flow(x)[0])


def test_foreign_flow_runs_in_float32_under_autocast() -> None:
    """A product in bfloat16 would lose digits of z, and libraries add up log-dets in the dtype of their layers."""
    weight = torch.linalg.qr(noise(4, 4)).Q
    flow = CallableFlow(lambda x: (x @ weight, x[:, 0] * 0), "location", inverse=lambda z: z @ weight.T)
    x = noise(2, 4, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (x, x.bfloat16()):
            z, log_det = flow(given)
            assert (z.dtype, log_det.dtype) == (torch.float32, torch.float32)
            right = torch.einsum("bihw,ij->bjhw", given.double(), weight.double())
            assert torch.allclose(z.double(), right, atol=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_transform_flow_can_be_copied_after_a_forward_pass(cached: bool) -> None:
    """A cache of the last batch would hold its graph, which cannot be copied."""
    scale = nn.Parameter(torch.full((4,), 2.0))
    flow = as_flow(transforms.AffineTransform(0.0, scale, cache_size=int(cached)))
    z, _ = flow(noise(2, 4, 2, 3))
    assert z.requires_grad
    assert torch.equal(copy.deepcopy(flow)(noise(2, 4, 2, 3))[0], z)


NO_FLOW = "flow must be of FrEIA, nflows, normflows, zuko, torch.distributions or Pyro, or a callable"
REJECTED: dict[str, tuple[Callable[[], Any], str]] = {
    "a layer": (lambda: as_flow(nn.Linear(2, 2)), rf"{NO_FLOW} .*but got torch.nn.modules.linear.Linear"),
    "a number": (lambda: as_flow(3), f"{NO_FLOW} .* but got builtins.int"),
    "a list of layers": (lambda: as_flow([nn.ReLU()]), "builtins.list of torch.nn.modules.activation.ReLU"),
    "an empty list": (lambda: as_flow([]), "but got builtins.list"),
    "a function alone": (
        lambda: as_flow(lambda x: (x, 0)),
        r"for two functions call CallableFlow\(function, event, inverse",
    ),
    "no inverse": (
        lambda: CallableFlow(nn.ReLU(), "location"),
        "must have a method inverse, but got .*ReLU without one",
    ),
    "no event": (
        lambda: as_flow(Vectors()),
        "event must be 'location' or 'sample' for a callable, but got None; declare",
    ),
    "another event": (lambda: as_flow(Vectors(), "pixel"), "event must be .* but got 'pixel'"),  # type: ignore[arg-type]
    "rows of a sample": (
        lambda: CallableFlow(Vectors(), "sample", maps=False),
        "maps must be True or None if event is",
    ),
    "a distribution": (lambda: as_flow(Normal(0.0, 1.0)), "must be a TransformedDistribution .*Normal"),
    "no bijection": (lambda: as_flow(transforms.AbsTransform()), "must be bijective, but got AbsTransform"),
    "matrices": (
        lambda: as_flow(transforms.AffineTransform(0.0, 1.0, event_dim=2)),
        r"must have event_dim 0, 1 or 3 .* but got 2",
    ),
    "event of a transform": (
        lambda: as_flow(transforms.ExpTransform(), "sample"),
        "event must be 'location' for transforms of event_dim 0, but got 'sample'; leave it out",
    ),
    "transforms and others": (
        lambda: as_flow([transforms.ExpTransform(), 3]),
        "must be a Transform of torch.distributions, but got builtins.int",
    ),
    "direction": (lambda: TransformFlow(transforms.ExpTransform(), direction="up"), "direction must be z_to_x or"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REJECTED)
def test_invalid_arguments_are_rejected(name: str) -> None:
    make, message = REJECTED[name]
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_foreign_flow_rejects_wrong_shapes() -> None:
    flow = as_flow(Vectors(), "location")
    with pytest.raises(ShapeError, match=r"x must be \(B, C, H, W\), but got \(2, 4\)"):
        flow(noise(2, 4))
    with pytest.raises(
        ShapeError, match=r"context must be \(D, 2, 3\) or \(B, D, 2, 3\) with B = 2, but got \(5, 3, 2\)"
    ):
        flow(noise(2, 4, 2, 3), noise(5, 3, 2))
    with pytest.raises(ShapeError, match=r"z must be \(12, 4\), .* but got \(12, 2\)"):
        CallableFlow(lambda x: (x[:, :2], x[:, 0]), "location", inverse=torch.log)(noise(2, 4, 2, 3))
    with pytest.raises(ShapeError, match=r"must return \(z, log_det\), but got Tensor"):
        CallableFlow(torch.exp, "location", inverse=torch.log)(noise(2, 4, 2, 3))


@pytest.mark.parametrize(
    ("package", "extra", "wrap"),
    [
        ("nflows.transforms", "nflows", NFlowsFlow),
        ("normflows", "normflows", NormflowsFlow),
        ("zuko.lazy", "zuko", ZukoFlow),
    ],
)
def test_missing_library_error_names_its_extra(
    package: str, extra: str, wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    of_the_library = type("Unpickled", (nn.Module,), {"__module__": f"{extra}.somewhere"})()
    for make in (wrap, as_flow):
        with pytest.raises(SemflowError, match=rf'{package} must be installed, .*pip install "semflow\[{extra}\]"'):
            make(of_the_library)


@pytest.mark.parametrize("library", ["nflows", "normflows", "zuko"])
def test_other_objects_of_a_library_are_rejected(library: str) -> None:
    pytest.importorskip(library, reason=f'needs {library}: pip install "semflow[{library}]"')
    alien = type("Alien", (nn.Module,), {"__module__": f"{library}.somewhere"})()
    event: Any = None if library == "zuko" else "location"
    with pytest.raises(
        ConfigError, match=rf"flow(\[0\])? must be a .* of {library}.* but got {library}.somewhere.Alien"
    ):
        as_flow(alien, event)
    with pytest.raises(ConfigError, match=rf"{library}.* (but got|must be) .*"):
        as_flow([alien], event)


def test_transform_flow_takes_transforms_of_zuko_from_data_to_noise() -> None:
    zuko = pytest.importorskip("zuko", reason='needs zuko: pip install "semflow[zuko]"')
    monotonic = zuko.transforms.MonotonicAffineTransform(torch.zeros(()), torch.ones(()))
    x = noise(2, 4, 2, 3)
    right = monotonic(x)
    assert torch.allclose(as_flow(monotonic)(x)[0], right)
    assert torch.allclose(as_flow(monotonic.inv)(right)[0], x, atol=1e-6)
    assert torch.allclose(as_flow([monotonic, monotonic])(x)[0], monotonic(right))
    with pytest.raises(ConfigError, match="direction must be declared for a mix of transforms of zuko"):
        as_flow([monotonic, transforms.ExpTransform()])
    with pytest.raises(ConfigError, match="event must be 'location' for a flow of zuko"):
        as_flow(zuko.flows.MAF(4, transforms=1), "sample")


def test_conditional_transforms_of_pyro_need_a_context() -> None:
    made = pytest.importorskip("pyro.distributions.transforms", reason='needs pyro: pip install "semflow[pyro]"')
    flow = as_flow(made.conditional_affine_coupling(4, 3, hidden_dims=[8]))
    with pytest.raises(
        ShapeError, match="context must be given to the conditional ConditionalAffineCoupling, but got None"
    ):
        flow(noise(2, 4, 2, 3))


def test_transform_without_an_inverse_raises_not_implemented_error() -> None:
    class OneWay(transforms.Transform):
        """A transform that defines no inverse: torch's base class raises."""

        domain = codomain = constraints.real
        bijective = True

    with pytest.raises(NotImplementedError):
        as_flow(OneWay())(noise(2, 4, 2, 3))


def test_list_of_lazy_transforms_is_their_composition() -> None:
    zuko = pytest.importorskip("zuko", reason='needs zuko: pip install "semflow[zuko]"')
    flow = zuko.flows.MAF(4, transforms=2, hidden_features=(8,))
    x = noise(2, 4, 2, 3)
    assert torch.equal(as_flow(list(flow.transform.transforms))(x)[1], as_flow(flow)(x)[1])


def test_normflows_log_dets_are_added_in_the_dtype_of_x() -> None:
    """normflows' own inverse_and_log_det adds them in float32 and loses digits."""
    nf = pytest.importorskip("normflows", reason='needs normflows: pip install "semflow[normflows]"')
    theirs = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [nf.flows.AffineConstFlow((4,))]).double()
    with torch.no_grad():
        theirs.flows[0].s.copy_(torch.tensor([[0.1, 0.2, 0.3, 1 / 3]]))
        _, log_det = as_flow(theirs, "location")(noise(2, 4, 2, 3).double())
    right = -theirs.flows[0].s.sum().item()
    assert log_det.dtype == torch.float64
    assert (log_det - right).abs().max() < 1e-14


def test_as_flow_imports_no_other_library() -> None:
    code = (
        "import sys, torch, semflow\n"
        "from torch.distributions.transforms import AffineTransform\n"
        "semflow.as_flow(AffineTransform(0.0, 2.0))(torch.zeros(1, 2, 1, 1))\n"
        "print(sorted({'FrEIA', 'nflows', 'normflows', 'zuko', 'pyro'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
