"""Variance heads: initialization, bounds, inputs and precision."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.nn import (
    FeatureStatisticsNetwork,
    FixedVariance,
    InverseGammaVariance,
    LearnedVariance,
    PredictedMean,
    Statistics,
    StatisticsNetwork,
    VarianceHead,
)

SIZES = ((8, 8), (4, 4), (2, 2))
CHANNELS = (6, 10, 14)


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def features(batch: int = 2, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(CHANNELS, sizes, strict=False)]


def network(**options: Any) -> StatisticsNetwork:
    return StatisticsNetwork(filters=8, **{"stride": 4, **options})


def feature_networks(outputs: int = 2) -> list[nn.Module]:
    return [FeatureStatisticsNetwork(c, outputs=outputs, filters=8) for c in CHANNELS]


HEADS: dict[str, Callable[[], VarianceHead]] = {
    "fixed": FixedVariance,
    "learned": LearnedVariance,
    "inverse-gamma": lambda: InverseGammaVariance(network()),
    "inverse-gamma-features": lambda: InverseGammaVariance(feature_networks()),
    "inverse-gamma-and-mean": lambda: InverseGammaVariance(network(outputs=4)),
    "predicted-mean": lambda: PredictedMean(network()),
    "predicted-mean-features": lambda: PredictedMean(feature_networks()),
}


class Calls(nn.Module):
    """Network with given maps that records the shapes of its inputs."""

    def __init__(self, outputs: int = 2, source: str = "image", scale: float = 0.0) -> None:
        super().__init__()
        self.output = nn.Conv2d(3, outputs, 1)
        self.source, self.scale, self.seen = source, scale, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        maps = self.output.bias[:, None, None].expand(len(x), -1, *x.shape[2:])
        return maps + self.scale * x[:, :1]


@pytest.mark.parametrize("name", HEADS)
def test_heads_return_statistics_of_each_scale(name: str) -> None:
    for sizes in (SIZES, ((7, 5), (4, 3), (2, 2)), ((1, 1), (1, 1), (1, 1))):
        found = HEADS[name]()(images(), features(sizes=sizes))
        assert len(found) == 3
        for statistics, (height, width) in zip(found, sizes, strict=True):
            assert isinstance(statistics, Statistics)
            assert statistics.variance().shape == (2, height, width)
            assert (statistics.variance() > 0).all()
            for part in (statistics.alpha, statistics.beta, statistics.normal_shift, statistics.anomaly_shift):
                assert part is None or part.shape == (2, 1, height, width)
            assert statistics.kl is None or statistics.kl.shape == (2, height, width)


def test_heads_fill_the_fields_that_they_predict() -> None:
    filled = {
        name: (s.alpha is not None, s.kl is not None, s.normal_shift is not None, s.anomaly_shift is not None)
        for name in HEADS
        for s in HEADS[name]()(images(), features())[:1]
    }
    distribution, means = (True, True, False, False), (False, False, True, True)
    assert filled == {
        "fixed": (False,) * 4,
        "learned": (False,) * 4,
        "inverse-gamma": distribution,
        "inverse-gamma-features": distribution,
        "inverse-gamma-and-mean": (True,) * 4,
        "predicted-mean": means,
        "predicted-mean-features": means,
    }


@pytest.mark.parametrize("networks", [StatisticsNetwork, lambda: StatisticsNetwork(outputs=4, stride=4)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_inverse_gamma_variance_starts_at_the_prior(networks: Callable[[], nn.Module], mode: str) -> None:
    """KL is below 1 nat at every location; with the default initialization it is 114 nats."""
    head = InverseGammaVariance(networks()).train(mode == "train")
    for statistics in head(images(), features()):
        assert (statistics.alpha.log() - math.log(59.5)).abs().max() < 0.2
        assert (statistics.beta.log() - math.log(6.05)).abs().max() < 0.2
        assert (statistics.variance() - 0.1).abs().max() < 0.03
        assert statistics.kl.max() < 1
        for shift in (statistics.normal_shift, statistics.anomaly_shift):
            assert shift is None or shift.abs().max() < 0.2


def test_prior_follows_window_and_mode() -> None:
    for window, mode in ((11, 0.1), (5, 2.0)):
        head = InverseGammaVariance(Calls(), window=window, mode=mode)
        alpha, beta = window**2 / 2 - 1, window**2 * mode / 2
        assert head.prior == pytest.approx((alpha, beta))
        (statistics,) = head(images(), features()[:1])
        assert statistics.alpha.flatten().tolist() == pytest.approx([alpha] * 128, rel=1e-5)
        assert statistics.beta.flatten().tolist() == pytest.approx([beta] * 128, rel=1e-5)
        assert statistics.variance().flatten().tolist() == pytest.approx([mode] * 128, rel=1e-5)
        assert statistics.kl.abs().max() < 1e-5


@given(log_alpha=st.floats(-30, 30), log_beta=st.floats(-30, 30))
def test_parameters_are_clamped_and_kl_is_nonnegative(log_alpha: float, log_beta: float) -> None:
    calls = Calls()
    head = InverseGammaVariance(calls)
    with torch.no_grad():
        calls.output.bias.copy_(torch.tensor([log_alpha, log_beta]))
    (statistics,) = head(images(1, 2), [torch.zeros(1, 4, 2, 2)])
    low, high = 1e-8, 1e4
    for parameter, log in ((statistics.alpha, log_alpha), (statistics.beta, log_beta)):
        expected = min(max(math.exp(log), low), high)
        assert parameter.flatten().tolist() == pytest.approx([expected] * 4, rel=1e-4)
    assert statistics.kl.isfinite().all()
    assert (statistics.kl >= 0).all()


@pytest.mark.parametrize("make", [InverseGammaVariance, PredictedMean])
def test_shared_network_runs_once(make: Any) -> None:
    calls = Calls()
    make(calls)(images(), features())
    assert calls.seen == [(2, 3, 32, 32)]


@pytest.mark.parametrize("make", [InverseGammaVariance, PredictedMean])
def test_feature_networks_run_once_on_the_features_of_their_scale(make: Any) -> None:
    calls = [Calls(source="features") for _ in CHANNELS]
    make(calls)(images(), features())
    assert [c.seen for c in calls] == [[(2, c, *size)] for c, size in zip(CHANNELS, SIZES, strict=True)]


def test_image_networks_per_scale_run_on_the_images() -> None:
    calls = [Calls() for _ in CHANNELS]
    InverseGammaVariance(calls)(images(), features())
    assert [c.seen for c in calls] == [[(2, 3, 32, 32)]] * 3


def test_resize_averages_logs_or_takes_the_nearest() -> None:
    x = images()
    for resize, expected in (
        ("average", [F.avg_pool2d(x[:, :1], 32 // size) for size, _ in SIZES]),
        ("nearest", [x[:, :1, :: 32 // size, :: 32 // size] for size, _ in SIZES]),
    ):
        head = InverseGammaVariance(Calls(scale=1.0), resize=resize)
        for statistics, right in zip(head(x, features()), expected, strict=True):
            assert torch.allclose(statistics.alpha.log() - math.log(59.5), right, atol=1e-5)
            assert torch.allclose(statistics.beta.log() - math.log(6.05), right, atol=1e-5)


def test_smaller_maps_are_enlarged_by_repetition() -> None:
    head = InverseGammaVariance(Calls(scale=1.0))
    x = images(size=4)
    (statistics,) = head(x, [torch.zeros(2, 4, 8, 8)])
    right = x[:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(statistics.alpha.log() - math.log(59.5), right, atol=1e-5)


def test_kl_matches_samples_of_the_resized_parameters() -> None:
    head = InverseGammaVariance(Calls(scale=2.0))
    a0, b0 = head.prior
    for s in head(images(), features()):
        p, q = (
            torch.distributions.InverseGamma(a.double(), b.double()) for a, b in ((s.alpha, s.beta), scalars(a0, b0))
        )
        samples = p.rsample((4000,))
        estimate = (p.log_prob(samples) - q.log_prob(samples)).mean(0)[:, 0]
        assert torch.allclose(s.kl.double(), estimate, atol=0.1, rtol=0.1)


def scalars(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


def test_kl_has_gradients_for_all_network_parameters() -> None:
    head = HEADS["inverse-gamma"]()
    torch.stack([s.kl.mean() for s in head(images(), features())]).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_fixed_variance_is_constant_and_has_no_parameters() -> None:
    for s in FixedVariance(0.25)(images(), features()):
        assert s.variance().unique().tolist() == [0.25]
    assert not list(FixedVariance().parameters())


def test_learned_variance_is_one_number_per_scale() -> None:
    head = LearnedVariance(scales=3, start=0.4)
    with torch.no_grad():
        head.log_variance[1] = math.log(2.0)
        head.log_variance[2] = 99.0
    found = head(images(), features())
    assert [s.variance().unique().item() for s in found] == pytest.approx([0.4, 2.0, 1e4])
    torch.stack([s.variance().mean() for s in found[:2]]).sum().backward()
    assert head.log_variance.grad.tolist() == pytest.approx([0.4, 2.0, 0.0])


def test_predicted_mean_reads_shifts_from_the_two_maps() -> None:
    calls = Calls(scale=1.0)
    head = PredictedMean(calls, variance=0.3)
    with torch.no_grad():
        calls.output.bias.copy_(torch.tensor([1.0, -2.0]))
    x = images()
    statistics = head(x, features())[0]
    pooled = F.avg_pool2d(x[:, :1], 4)
    assert torch.allclose(statistics.normal_shift, pooled + 1, atol=1e-6)
    assert torch.allclose(statistics.anomaly_shift, pooled - 2, atol=1e-6)
    assert statistics.variance().unique().tolist() == pytest.approx([0.3])


def test_inverse_gamma_variance_reads_shifts_from_four_maps() -> None:
    calls = Calls(outputs=4)
    head = InverseGammaVariance(calls)
    with torch.no_grad():
        calls.output.bias.copy_(torch.tensor([1.0, 2.0, 3.0, -4.0]))
    (statistics,) = head(images(), features()[:1])
    assert statistics.alpha.unique().log().tolist() == pytest.approx([1.0])
    assert statistics.beta.unique().log().tolist() == pytest.approx([2.0])
    assert statistics.normal_shift.unique().tolist() == [3.0]
    assert statistics.anomaly_shift.unique().tolist() == [-4.0]


@pytest.mark.parametrize("name", HEADS)
def test_double_precision_is_kept(name: str) -> None:
    """A float64 head must not pass through float32."""
    head = HEADS[name]().double().eval()
    x, maps = images().double(), [f.double() for f in features()]
    for statistics in head(x, maps):
        for part in statistics:
            assert part is None or part.dtype == torch.float64
    if name == "fixed":
        assert head(x, maps)[0].variance().unique().item() == 0.1
    if name == "learned":
        head = LearnedVariance().double()
        with torch.no_grad():
            head.log_variance.fill_(math.log(0.1))
        assert head(x, maps)[0].variance().unique().item() == pytest.approx(0.1, rel=1e-14)


def test_float64_maps_are_not_rounded() -> None:
    calls = Calls(scale=1e-10)
    head = InverseGammaVariance(calls).double()
    (statistics,) = head(images().double(), features()[:1])
    spread = statistics.alpha.log().amax() - statistics.alpha.log().amin()
    assert 0 < spread < 1e-10


@pytest.mark.parametrize("name", [name for name in HEADS if name != "fixed" and name != "learned"])
def test_under_autocast_statistics_are_float32(name: str) -> None:
    head = HEADS[name]().eval()
    expected = head(images(), features())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(images(), features())
    for statistics, right in zip(found, expected, strict=True):
        for part in statistics:
            assert part is None or (part.dtype == torch.float32 and part.isfinite().all())
        assert torch.allclose(statistics.variance(), right.variance(), rtol=0.1)


@pytest.mark.parametrize("name", HEADS)
def test_evaluation_is_independent_of_the_batch(name: str) -> None:
    head = HEADS[name]()
    head(images(4), features(4))  # running statistics that differ from the initial ones
    head.eval()
    x, maps = images(3), features(3)
    together = head(x, maps)
    for i in range(3):
        alone = head(x[i : i + 1], [f[i : i + 1] for f in maps])
        for one, all_ in zip(alone, together, strict=True):
            for part, whole in zip(one, all_, strict=True):
                assert part is None or torch.allclose(part, whole[i : i + 1], atol=1e-5, rtol=1e-5)


def test_detach_removes_all_gradients() -> None:
    (statistics, *_) = HEADS["inverse-gamma-and-mean"]()(images(), features())
    assert statistics.kl.requires_grad
    assert not any(part.requires_grad for part in statistics.detach())
    (fixed, *_) = FixedVariance()(images(), features())
    assert fixed.detach().alpha is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedVariance(0.0), "variance must be positive"),
        (lambda: FixedVariance(float("nan")), "variance must be a finite number"),
        (lambda: LearnedVariance(start=-1.0), "start must be positive"),
        (lambda: PredictedMean(network(), variance=0.0), "variance must be positive"),
        (lambda: InverseGammaVariance(network(), resize="bilinear"), "resize must be average or nearest"),
        (lambda: PredictedMean(network(), resize="bilinear"), "resize must be average or nearest"),
        (lambda: InverseGammaVariance(network(outputs=3)), "networks must have 2 or 4 outputs, but got 3"),
        (lambda: PredictedMean(network(outputs=1)), "networks must have 2 outputs, but got 1"),
        (lambda: InverseGammaVariance(nn.Conv2d(3, 2, 1)), "must end in a layer named output"),
        (lambda: InverseGammaVariance(network(), window=1.0), "window must be above"),
        (lambda: InverseGammaVariance(network(), mode=0.0), "mode must be positive"),
        (
            lambda: InverseGammaVariance(feature_networks()[:2])(images(), features()),
            "networks must have 1 or 3 members",
        ),
    ],
)
def test_heads_reject_invalid_options(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_learned_variance_rejects_another_number_of_scales() -> None:
    with pytest.raises(ShapeError, match="features must have 2 maps, but got 3"):
        LearnedVariance(scales=2)(images(), features())


def test_head_without_forward_raises_type_error() -> None:
    with pytest.raises(TypeError, match="VarianceHead must define forward"):
        VarianceHead()(images(), features())
