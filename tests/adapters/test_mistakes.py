"""Errors of adapted flows: channels, dtype, device, context, event and missing inverses."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from helpers.library_cases import CASES, SIZE, D, draw, lib, need, surroundings
from semflow.adapters import CallableFlow, TransformFlow, as_flow
from semflow.errors import ConfigError, ShapeError
from semflow.testing import LawError, check_flow

C = 4


class Linear(nn.Module):
    """Flow of vectors with a learned matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), torch.linalg.slogdet(self.layer.weight).logabsdet.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z @ torch.linalg.inv(self.layer.weight).T


class OtherDevice(Linear):
    """Raises what a GPU raises; torch's meta device, which stands in for one here, does not."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.device != self.layer.weight.device:
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().forward(x)


class Scale(nn.Module):
    """Flow of maps with a log-det per location."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.linspace(-0.5, 1, C)[:, None, None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.s.exp(), self.s.sum().expand(len(x), *x.shape[2:])

    def inverse(self, z: Tensor) -> Tensor:
        return z * (-self.s).exp()


class Neighbors(Scale):
    """Flow of maps whose scale depends on the first column."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = self.s * x[:, :1, :, :1].tanh()
        return x * left.exp(), left.sum(1).expand(len(x), *x.shape[2:])


def test_error_names_a_different_dtype_or_device() -> None:
    flow = as_flow(Linear(), "location")
    with pytest.raises(ShapeError, match=r"; x has dtype torch.float64, its parameters have torch.float32: use one"):
        flow(draw(2, C, *SIZE, seed=0, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"; x has device cpu, its parameters have meta: use one for both$"):
        as_flow(OtherDevice().to("meta"), "location")(draw(2, C, *SIZE, seed=0))


# ConditionalNormalizingFlow and nflows' masked layers run without their context; see the test of check_flow below.
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.context])
def test_error_names_the_channels_of_x_and_context(name: str) -> None:
    case = CASES[name]
    need(case.library)
    with surroundings(0):
        flow = as_flow(case.make(C), case.declared)
    x, context = draw(2, C, *SIZE, seed=1), draw(D, *SIZE, seed=2)
    flow(x, context)
    # With more channels than its mask, zuko leaves some uninitialized and Pyro drops some: neither raises.
    wrong = (
        rf"; make it for {C + 2} channels and {D} context channels|x must be \(B, {C}, H, W\)|the shape of the input"
    )
    with pytest.raises(ShapeError, match=wrong):
        flow(draw(2, C + 2, *SIZE, seed=1), context)
    with pytest.raises(ShapeError, match=f"; make it for {C} channels and {D + 1} context channels"):
        flow(x, draw(2, D + 1, *SIZE, seed=2))
    if case.library in ("zuko", "pyro"):
        with pytest.raises(ShapeError, match=r"0 context channels|context must be given"):
            flow(x)


@pytest.mark.parametrize("library", ["nflows", "normflows"])
def test_check_flow_detects_a_missing_context(library: str) -> None:
    need(library)
    with surroundings(0):
        layer = (
            lib("nflows.transforms").MaskedAffineAutoregressiveTransform(C, 8, context_features=D)
            if library == "nflows"
            else lib("normflows").flows.MaskedAffineAutoregressive(C, 8, context_features=D)
        )
        flow = as_flow(layer, "location")
    with pytest.raises(
        LawError, match=r"context_layer.weight must not be zero, but got zero; give check_flow a context"
    ):
        check_flow(flow, draw(2, C, *SIZE, seed=1), compile_backend=None)
    check_flow(flow, draw(2, C, *SIZE, seed=1), draw(D, *SIZE, seed=2), compile_backend=None)


def square() -> Tensor:
    """Return maps as wide as they have channels, along whose width a flow of vectors runs without an error."""
    return draw(2, C, 2, C, seed=1)


def elementwise() -> transforms.Transform:
    """Return a transform whose log-det torch sums over the dimensions of the scale, not over those of x."""
    return transforms.AffineTransform(0.0, nn.Parameter(torch.full((C, 1, 1), 2.0)), event_dim=3)


WRONG: dict[str, tuple[Callable[[], Any], Callable[[], Tensor], str, str]] = {
    "vectors along the width": (lambda: as_flow(Linear(), "sample"), square, "log_det", "location"),
    "a scale of torch": (lambda: as_flow(elementwise()), square, "log_det", "location"),
    "neighbors": (lambda: CallableFlow(Neighbors(), "location", maps=True), square, "locality", "sample"),
}


@pytest.mark.parametrize("name", WRONG)
def test_check_flow_names_a_wrong_event_that_raises_no_error(name: str) -> None:
    make, x, law, right = WRONG[name]
    flow = make()
    z, log_det = flow(x())
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    with pytest.raises(LawError, match=rf"    {law}: .*; if it maps .*, its event is '{right}'") as caught:
        check_flow(flow, x(), compile_backend=None)
    assert law in caught.value.laws


def test_error_leads_to_maps_true_for_a_log_det_per_location() -> None:
    """Either event alone is wrong for such a flow; with `maps=True` it satisfies the laws."""
    x = draw(2, C, *SIZE, seed=1)
    for event in ("location", "sample"):
        with pytest.raises(ShapeError, match=r"maps=True") as caught:
            as_flow(Scale(), event)(x)  # type: ignore[arg-type]
        assert "'location'" in str(caught.value)
    check_flow(CallableFlow(Scale(), "location", maps=True), x, compile_backend=None)
    with pytest.raises(ShapeError, match="if it maps vectors \\(C,\\), leave maps out"):
        CallableFlow(Linear(), "location", maps=True)(x)


def one_way(library: str, name: str) -> Any:
    need(library)
    with surroundings(0):
        if library == "pyro":
            return getattr(lib("pyro.distributions.transforms"), name)(C)
        return getattr(lib("normflows").flows, name)((C,))


ONE_WAY = [("pyro", "planar"), ("pyro", "radial"), ("pyro", "sylvester"), ("pyro", "neural_autoregressive")]


@pytest.mark.parametrize(("library", "name"), [*ONE_WAY, ("normflows", "Planar"), ("normflows", "Radial")])
def test_error_names_a_flow_without_an_inverse(library: str, name: str) -> None:
    flow = as_flow(one_way(library, name), None if library == "pyro" else "location")
    for kind in (ConfigError, NotImplementedError):
        with pytest.raises(kind, match=rf"{name.title().replace('_', '')} must map x to z, but got ") as caught:
            flow(draw(2, C, *SIZE, seed=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("library", "name"), ONE_WAY)
def test_flow_without_an_inverse_has_a_likelihood_in_the_other_direction(library: str, name: str) -> None:
    """A transform that maps x to z needs no inverse for log p; the log-det is that of autograd's Jacobian."""
    flow = TransformFlow(one_way(library, name), direction="x_to_z")
    x = draw(2, C, 1, 1, seed=1)
    _, log_det = flow(x)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: flow(v[:, :, None, None])[0][:, :, 0, 0].sum(0), x[..., 0, 0]
    )
    right = torch.linalg.slogdet(jacobian.movedim(1, 0)).logabsdet
    torch.testing.assert_close(log_det[:, 0, 0], right, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="must map z to x"):
        flow.inverse(x)


def test_missing_anomalib_error_names_its_extra() -> None:
    code = "import sys; sys.modules['anomalib'] = None; import semflow.adapters.anomalib"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    (last,) = done.stderr.strip().splitlines()[-1:]
    assert last.startswith("semflow.errors.ConfigError: anomalib must be installed")
    assert last.endswith('pip install "semflow[anomalib]"')


def test_as_flow_rejects_classes_and_single_blocks() -> None:
    with pytest.raises(ConfigError, match="flow must be an object, but got the class Linear; make an instance of it"):
        as_flow(Linear)
    with pytest.raises(
        ShapeError, match=r"scale_0 has the shape of a map, but a transform of event_dim 0 or 1 maps rows: make it"
    ):
        as_flow(transforms.AffineTransform(0.0, nn.Parameter(torch.ones(C, 1, 1))))(square())
    need("FrEIA")
    block = lib("FrEIA.modules").GLOWCouplingBlock([(C,)], subnet_constructor=nn.Linear)
    for given in (block, [block, block], nn.ModuleList([block])):
        with pytest.raises(
            ConfigError, match=r"SequenceINN or a GraphINN of FrEIA, but got .*GLOWCouplingBlock; append"
        ):
            as_flow(given)
