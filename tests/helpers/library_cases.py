"""Flows of other libraries with the log-likelihoods that the libraries compute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions import transforms as torch_transforms

from semflow.flows import Flow
from semflow.functional import to_locations
from semflow.testing.case import perturb

SIZE = (2, 3)
D = 3


@contextmanager
def surroundings(seed: int, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Seed the global generator and set the default dtype, which libraries use; restore both afterwards."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def moved(flow: Flow, seed: int = 0) -> Flow:
    """Perturb a flow's parameters, since many flows start as the identity."""
    perturb(flow, 0.3, torch.Generator().manual_seed(seed))
    return flow


def lib(name: str) -> Any:
    return import_module(name)


def base(shape: tuple[int, ...], like: Tensor) -> Independent:
    return Independent(Normal(torch.zeros(shape).to(like), torch.ones(shape).to(like)), len(shape))


def nflows_log_prob(flow: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Return the log-likelihood of nflows' Flow with its StandardNormal."""
    if not isinstance(flow, lib("nflows.flows").Flow):
        flow = flow if isinstance(flow, nn.Module) else lib("nflows.transforms").CompositeTransform(flow)
        flow = lib("nflows.flows").Flow(flow, lib("nflows.distributions").StandardNormal(x.shape[1:]))
    return flow.log_prob(x, context)


def normflows_log_prob(flow: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Return the log-likelihood of normflows' NormalizingFlow with its DiagGaussian."""
    normflows = lib("normflows")
    if isinstance(flow, normflows.NormalizingFlow):
        return flow.log_prob(x) if context is None else flow.log_prob(x, context)
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(tuple(x.shape[1:]), trainable=False), flow)
    return flow.to(x.dtype).log_prob(x)


def zuko_log_prob(flow: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Return the log-likelihood of zuko's NormalizingFlow with its DiagNormal."""
    zuko = lib("zuko")
    transform = flow.transform(context) if isinstance(flow, zuko.lazy.Flow) else flow(context)
    normal = zuko.distributions.DiagNormal(torch.zeros_like(x[0]), torch.ones_like(x[0]))
    return zuko.distributions.NormalizingFlow(transform, normal).log_prob(x)


def torch_log_prob(flow: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Return the log-likelihood of torch's TransformedDistribution."""
    parts = list(getattr(flow, "transforms", flow)) if not isinstance(flow, torch_transforms.Transform) else [flow]
    parts = [part.condition(context) if hasattr(part, "condition") else part for part in parts]
    return TransformedDistribution(base(tuple(x.shape[1:]), x), parts).log_prob(x)


def residual(inputs: int, outputs: int) -> nn.Module:
    return lib("nflows.nn.nets").ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1)


def convolutional(inputs: int, outputs: int) -> nn.Module:
    return lib("nflows.nn.nets").ConvResidualNet(inputs, outputs, hidden_channels=8, num_blocks=1)


def nflows_composite(c: int) -> Any:
    t = lib("nflows.transforms")
    mask = [i % 2 for i in range(c)]
    return t.CompositeTransform([t.AffineCouplingTransform(mask, residual), t.RandomPermutation(c), t.LULinear(c)])


def nflows_splines(c: int) -> Any:
    t = lib("nflows.transforms")
    mask = [i % 2 for i in range(c)]
    return [
        t.PiecewiseRationalQuadraticCouplingTransform(mask, residual, tails="linear", tail_bound=4.0),
        t.LULinear(c),
    ]


def nflows_flow(c: int) -> Any:
    t = lib("nflows.transforms")
    transform = t.MaskedAffineAutoregressiveTransform(c, 8, context_features=2)
    return lib("nflows.flows").Flow(transform, lib("nflows.distributions").StandardNormal([c]), nn.Linear(D, 2))


def nflows_maps(c: int) -> Any:
    t = lib("nflows.transforms")
    mask = [i % 2 for i in range(c)]
    return t.CompositeTransform([t.AffineCouplingTransform(mask, convolutional), t.OneByOneConvolution(c)])


def normflows_flow(c: int) -> Any:
    nf = lib("normflows")
    net = nf.nets.MLP([c // 2, 8, c], init_zeros=False)
    parts = [nf.flows.AffineCouplingBlock(net), nf.flows.LULinearPermute(c), nf.flows.AffineConstFlow((c,))]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(c, trainable=False), parts)


def normflows_splines(c: int) -> Any:
    nf = lib("normflows")
    return [nf.flows.CoupledRationalQuadraticSpline(c, 1, 8), nf.flows.Permute(c)]


def normflows_conditional(c: int) -> Any:
    nf = lib("normflows")
    parts = [nf.flows.MaskedAffineAutoregressive(c, 8, context_features=D)]
    normal = nf.distributions.base.ConditionalDiagGaussian(
        c, context_encoder=lambda context: context.new_zeros(len(context), 2 * c)
    )
    return nf.ConditionalNormalizingFlow(normal, parts)


def normflows_maps(c: int) -> Any:
    nf = lib("normflows")
    net = nf.nets.ConvNet2d([c // 2, 8, c], [3, 3], init_zeros=False)
    return [nf.flows.AffineCouplingBlock(net), nf.flows.Invertible1x1Conv(c, use_lu=True)]


def zuko_flow(kind: str, context: int = 0) -> Callable[[int], Any]:
    def make(c: int) -> Any:
        return getattr(lib("zuko").flows, kind)(c, context, transforms=2, hidden_features=(8,))

    return make


def zuko_transform(c: int) -> Any:
    return zuko_flow("NSF")(c).transform


def torch_elementwise(c: int) -> Any:
    scale = nn.Parameter(draw(c, seed=5, dtype=torch.get_default_dtype()).exp())
    loc = nn.Parameter(draw(c, seed=6, dtype=torch.get_default_dtype()))
    return [
        torch_transforms.SigmoidTransform(),
        torch_transforms.SigmoidTransform().inv,
        torch_transforms.AffineTransform(loc, scale),
    ]


def torch_compose(c: int) -> Any:
    lower = torch.eye(c) + 0.3 * draw(c, c, seed=4, dtype=torch.get_default_dtype()).tril()
    weight = nn.Parameter(lower)
    affine = torch_transforms.AffineTransform(0.0, nn.Parameter(torch.full((c,), 2.0)), event_dim=1)

    class Linear(torch_transforms.Transform):
        """A transform of a user: a learned triangular matrix."""

        domain = codomain = torch.distributions.constraints.real_vector
        bijective = True

        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def _call(self, x: Tensor) -> Tensor:
            return x @ self.weight.tril().T

        def _inverse(self, y: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(self.weight.tril(), y.T, upper=False).T

        def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
            return self.weight.diagonal().abs().log().sum().expand(x.shape[:-1])

    return torch_transforms.ComposeTransform([affine, Linear()])


def torch_distribution(c: int) -> Any:
    return TransformedDistribution(
        Normal(torch.zeros(c), 1.0), [torch_compose(c).inv, torch_compose(c), torch_compose(c)]
    )


def torch_maps(c: int) -> Any:
    scale = nn.Parameter(draw(c, *SIZE, seed=5, dtype=torch.get_default_dtype()).exp())
    return torch_transforms.AffineTransform(1.0, scale, event_dim=3)


def pyro_coupling(c: int) -> Any:
    t = lib("pyro.distributions.transforms")
    order = torch.arange(c).roll(1)
    return [
        t.affine_coupling(c, hidden_dims=[8]),
        t.permute(c, order),
        t.spline_coupling(c, hidden_dims=[8]),
    ]


def pyro_autoregressive(c: int) -> Any:
    return lib("pyro.distributions.transforms").affine_autoregressive(c, hidden_dims=[8])


def pyro_conditional(c: int) -> Any:
    t = lib("pyro.distributions.transforms")
    return [t.conditional_affine_coupling(c, D, hidden_dims=[8]), t.permute(c, torch.arange(c).roll(1))]


@dataclass(frozen=True)
class Case:
    """One flow: its factory, its event, and the log-likelihood that its library computes."""

    library: str
    make: Callable[[int], Any]
    log_prob: Callable[[Any, Tensor, Tensor | None], Tensor]
    event: str = "location"
    declare: bool = False
    context: bool = False
    compiles: bool = False  # whether it must compile to one graph
    checked: bool = True  # Pyro's autoregressive flow creates tensors of the default dtype

    @property
    def declared(self) -> Any:
        return self.event if self.declare else None

    def rows(self, x: Tensor) -> Tensor:
        """Return x in the library's layout."""
        return to_locations(x) if self.event == "location" else x


CASES = {
    "nflows composite": Case("nflows", nflows_composite, nflows_log_prob, declare=True, compiles=True),
    "nflows list of splines": Case("nflows", nflows_splines, nflows_log_prob, declare=True),
    "nflows Flow, context": Case("nflows", nflows_flow, nflows_log_prob, declare=True, context=True),
    "nflows maps": Case("nflows", nflows_maps, nflows_log_prob, "sample", declare=True),
    "normflows NormalizingFlow": Case("normflows", normflows_flow, normflows_log_prob, declare=True, compiles=True),
    "normflows list of splines": Case("normflows", normflows_splines, normflows_log_prob, declare=True),
    "normflows conditional": Case("normflows", normflows_conditional, normflows_log_prob, declare=True, context=True),
    "normflows maps": Case("normflows", normflows_maps, normflows_log_prob, "sample", declare=True),
    "zuko MAF": Case("zuko", zuko_flow("MAF"), zuko_log_prob),
    "zuko RealNVP, context": Case("zuko", zuko_flow("RealNVP", D), zuko_log_prob, context=True),
    "zuko lazy transform": Case("zuko", zuko_transform, zuko_log_prob),
    "torch elementwise": Case("torch", torch_elementwise, torch_log_prob),
    "torch compose": Case("torch", torch_compose, torch_log_prob, compiles=True),
    "torch TransformedDistribution": Case("torch", torch_distribution, torch_log_prob),
    "torch maps": Case("torch", torch_maps, torch_log_prob, "sample"),
    "pyro couplings": Case("pyro", pyro_coupling, torch_log_prob),
    "pyro autoregressive": Case("pyro", pyro_autoregressive, torch_log_prob, checked=False),
    "pyro conditional": Case("pyro", pyro_conditional, torch_log_prob, context=True),
}


def need(library: str) -> None:
    """Skip the test if a library is not installed."""
    if find_spec(library) is None:
        pytest.skip(f'needs {library}: pip install "semflow[{library}]"')
