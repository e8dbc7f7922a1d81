"""A flow that can be left out: both of its values, and its saved state."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from helpers.flow_cases import CASES, context_of, features
from semflow.errors import ConfigError
from semflow.flows import AffineCoupling, GlobalAffine, HardPermutation, OptionalFlow, ScaleWise, Standardize
from semflow.flows.optional import used_parameters
from semflow.nn import ConvSubnet
from semflow.testing import check_flow


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["location", "location-context-atan"])
def test_used_flow_is_the_flow(name) -> None:
    inner = CASES[name](6)
    x, context = features(2, 6, 5, 7), context_of(inner, 5, 7)
    for got, expected in zip(OptionalFlow(inner)(x, context), inner(x, context), strict=True):
        assert torch.equal(got, expected)
    z, _ = inner(x, context)
    assert torch.equal(OptionalFlow(inner).inverse(z, context), inner.inverse(z, context))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_flow_that_is_left_out_is_the_identity(x, dtype) -> None:
    flow = OptionalFlow(GlobalAffine(4, start=2.0))
    flow.use(False, spread=0.02)
    x = x.to(dtype)
    z, log_det = flow(x)
    assert torch.equal(z, x)
    assert torch.equal(flow.inverse(z), x)
    assert torch.equal(log_det, torch.zeros(2, 3, 5, dtype=torch.float64 if dtype == torch.float64 else torch.float32))
    assert flow.spread == pytest.approx(0.02)
    assert "used=False" in repr(flow)


@pytest.mark.parametrize("used", [True, False])
def test_optional_flow_keeps_the_laws_of_flows(used) -> None:
    """A flow that is left out has no parameters here, since they would get no gradient."""
    flow = OptionalFlow(AffineCoupling(6) if used else HardPermutation(6))
    flow.use(used)
    check_flow(flow, features(2, 6, 4, 5), compile_backend=None)


def test_choice_is_saved_and_copied(x) -> None:
    flow = OptionalFlow(GlobalAffine(4, start=2.0))
    assert (flow.used, flow.spread) == (True, 0.0)
    flow.use(False, 0.03)
    other = OptionalFlow(GlobalAffine(4, start=2.0))
    other.load_state_dict(flow.state_dict())
    assert (other.used, other.spread) == (False, flow.spread)
    assert torch.equal(deepcopy(other)(x)[0], x)
    flow.use(True, 0.3)
    other.load_state_dict(flow.state_dict())
    assert other.used
    assert not torch.equal(other(x)[0], x)


def test_standardization_of_an_optional_flow_is_found() -> None:
    inner = Standardize(4)
    assert ScaleWise([OptionalFlow(inner), GlobalAffine(4)]).standardizers() == [inner, None]


def test_flow_of_samples_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="flow must have event 'location' to be left out, but got 'sample'"):
        OptionalFlow(AffineCoupling(4, ConvSubnet))


def test_parameters_of_a_flow_that_is_left_out_are_not_used() -> None:
    flows = ScaleWise([OptionalFlow(AffineCoupling(4)), AffineCoupling(6)])
    assert [id(p) for p in used_parameters(flows)] == [id(p) for p in flows.parameters()]
    flows[0].use(False)
    assert [id(p) for p in used_parameters(flows)] == [id(p) for p in flows[1].parameters()]
