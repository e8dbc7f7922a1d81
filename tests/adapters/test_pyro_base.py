"""SemanticNormal in models of Pyro."""

import pytest
import torch
from torch import Tensor

from helpers.library_cases import draw, surroundings
from semflow.bases import SemanticNormal
from semflow.nn import Statistics

pyro = pytest.importorskip("pyro", reason='needs pyro: pip install "semflow[pyro]"')
from pyro.distributions import TransformedDistribution  # noqa: E402
from pyro.distributions.torch_distribution import TorchDistributionMixin  # noqa: E402
from pyro.distributions.transforms import affine_coupling  # noqa: E402


class Base(SemanticNormal, TorchDistributionMixin):  # type: ignore[misc]  # Pyro has no types
    """The class of the documentation's example."""


C = 4


def test_pyro_scores_a_plate_of_locations_with_the_base() -> None:
    base = Base.from_statistics(Statistics(draw(2, 1, 3, 4, seed=0).exp(), draw(2, 1, 3, 4, seed=1).exp()), C)
    assert isinstance(base, Base)
    z = draw(2, 3, 4, C, seed=2)

    def model(observed: Tensor | None = None) -> Tensor:
        with pyro.plate("images", 2, dim=-3), pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1):
            drawn: Tensor = pyro.sample("z", base, obs=observed)
        return drawn

    trace = pyro.poutine.trace(model).get_trace(z)
    torch.testing.assert_close(trace.log_prob_sum(), base.log_prob(z).sum())
    with surroundings(0):
        assert model().shape == z.shape


def test_base_expands_in_plates_and_under_a_flow_of_pyro() -> None:
    base = Base(torch.tensor(2.0), 1.0, torch.zeros(C))
    with surroundings(0):
        with pyro.plate("locations", 5):
            assert pyro.sample("z", base).shape == (5, C)
        flow = TransformedDistribution(base.expand_by([3]), [affine_coupling(C, hidden_dims=[8])])
        x = flow.rsample()
    (transform,) = flow.transforms
    z = transform.inv(x)
    right = SemanticNormal(torch.tensor(2.0), 1.0, torch.zeros(C)).log_prob(z) - transform.log_abs_det_jacobian(z, x)
    torch.testing.assert_close(flow.log_prob(x), right, rtol=1e-5, atol=1e-5)
