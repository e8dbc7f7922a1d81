"""TransformFlow equals torch for any nesting of compositions and inverses, also after a copy."""

import copy
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution, constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    Transform,
    _InverseTransform,
)

from semflow.adapters import TransformFlow
from semflow.bases import StandardNormal

C = 3


class Sinh(Transform):
    """y = sinh(a x), a bijection of the real line whose log-det depends on x."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def _call(self, x: Tensor) -> Tensor:
        return torch.sinh(self.a * x)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.asinh(y) / self.a

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.a * torch.cosh(self.a * x)).log()


class Triangular(Transform):
    """y = L x on vectors, L triangular with 1.3 on its diagonal."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__()
        weight = torch.full((C, C), 0.4, dtype=torch.float64).tril() + 0.9 * torch.eye(C, dtype=torch.float64)
        self.weight = nn.Parameter(weight)

    def _call(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.weight, y[..., None], upper=False)[..., 0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.weight.diagonal().log().sum().expand(x.shape[:-1])


def numbers(low: float, high: float) -> st.SearchStrategy[Tensor]:
    values = st.lists(st.floats(low, high), min_size=C, max_size=C)
    return values.map(lambda v: torch.tensor(v, dtype=torch.float64))


SINGLE = st.one_of(
    st.builds(lambda loc, scale: AffineTransform(nn.Parameter(loc), scale), numbers(-1, 1), numbers(0.5, 2)),
    numbers(0.5, 1).map(Sinh),
    st.builds(Triangular),
)
NESTED = st.recursive(
    SINGLE,
    lambda inner: st.one_of(
        inner.map(lambda t: t.inv),
        st.lists(inner, min_size=1, max_size=3).map(ComposeTransform),
        inner.filter(lambda t: t.domain.event_dim == 0).map(lambda t: IndependentTransform(t, 1)),
    ),
    max_leaves=4,
)


def leaves(transform: Any) -> list[Any]:
    if hasattr(transform, "parts"):
        return [leaf for part in transform.parts for leaf in leaves(part)]
    if hasattr(transform, "base_transform"):
        return leaves(transform.base_transform)
    return leaves(transform.inv) if isinstance(transform, _InverseTransform) else [transform]


@settings(max_examples=60)
@given(transforms=st.lists(NESTED, min_size=1, max_size=3), seed=st.integers(0, 100))
def test_transform_flow_equals_torch_for_any_nesting(transforms: list[Any], seed: int) -> None:
    normal = Independent(Normal(torch.zeros(C, dtype=torch.float64), torch.ones(C, dtype=torch.float64)), 1)
    theirs = TransformedDistribution(normal, transforms)
    x = 0.3 * torch.randn(2, C, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    right = theirs.log_prob(x.movedim(1, -1))
    flow = TransformFlow(theirs)
    z, log_det = flow(x)
    assert flow.event == "location"
    torch.testing.assert_close(StandardNormal().log_prob(z) + log_det, right, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(flow.inverse(z), x, rtol=1e-8, atol=1e-8)
    copied_z, copied_log_det = copy.deepcopy(flow)(x)
    assert torch.equal(copied_z, z)
    assert torch.equal(copied_log_det, log_det)
    # Every parameter is registered once.
    own = {id(v) for t in transforms for leaf in leaves(t) for v in vars(leaf).values() if isinstance(v, nn.Parameter)}
    assert {id(p) for p in flow.parameters()} == own
