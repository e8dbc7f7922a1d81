"""A variance head as the noise model of a regression, without a flow."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from helpers.library_cases import draw, surroundings
from semflow.bases import SemanticNormal
from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance, VarianceHead


class HeteroskedasticLikelihood(nn.Module):
    """GPyTorch's interface: p(y | f) = N(f, noise), where the noise is a module that is called."""

    def __init__(self, noise: VarianceHead) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, f: Tensor, inputs: Tensor) -> Normal:
        (statistics,) = self.noise(inputs, [inputs])
        return Normal(f, statistics.variance()[:, None].sqrt(), validate_args=False)


def data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs (B, 2, H, W), targets of mean 0 whose deviation depends on the second input, and that deviation."""
    inputs = draw(64, 2, 4, 6, seed=seed)
    deviation = torch.where(inputs[:, 1:] > 0, 0.2, 1.0)
    return inputs, deviation * draw(64, 1, 4, 6, seed=seed + 1), deviation


@pytest.mark.parametrize("integrated", [False, True], ids=["the mode of the variance", "the variance integrated out"])
def test_head_learns_the_noise_of_each_location(integrated: bool) -> None:
    inputs, targets, _ = data(0)
    with surroundings(0):
        noise = InverseGammaVariance(FeatureStatisticsNetwork(2, filters=16, kernel=1), window=3, mode=0.5)
    likelihood = HeteroskedasticLikelihood(noise)
    optimizer = torch.optim.Adam(likelihood.parameters(), 1e-2)
    for _ in range(150):
        if integrated:
            (statistics,) = noise(inputs, [inputs])
            given = SemanticNormal.from_statistics(statistics, channels=1)
            loss = -given.log_prob(targets.movedim(1, -1)).mean()
        else:
            loss = -likelihood(torch.zeros_like(targets), inputs).log_prob(targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, targets, deviation = data(10)  # held out
    with torch.no_grad():
        (statistics,) = noise(inputs, [inputs])
        given = SemanticNormal.from_statistics(statistics, channels=1, form="marginal" if integrated else "mode")
        actual = given.log_prob(targets.movedim(1, -1)).mean()
        spread = given.variance.movedim(-1, 1).sqrt()
    truth = Normal(0.0, deviation).log_prob(targets).mean()
    constant = Normal(0.0, targets.std()).log_prob(targets).mean()
    assert truth - actual < 0.3 * (truth - constant)  # most of the gain over one constant variance
    quiet = deviation < 0.5
    assert spread[quiet].median() == pytest.approx(0.2, rel=0.25)
    assert spread[~quiet].median() == pytest.approx(1.0, rel=0.25)
