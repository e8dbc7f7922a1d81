"""with_statistics: loss, log p and anomaly map equal those of its parts combined by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

import semflow
from semflow.adapters import CallableFlow, with_statistics
from semflow.bases import SemanticGaussian, StandardNormal
from semflow.errors import ConfigError, ShapeError
from semflow.flows import CrossScaleCoupling, PyramidSequence, coupling_stack
from semflow.functional import mask_to_grid
from semflow.nn import (
    FeatureStatisticsNetwork,
    FixedVariance,
    InverseGammaVariance,
    SinusoidalPosition2d,
    StatisticsNetwork,
    VarianceHead,
)
from semflow.objectives import PRESETS, Objective

B, C, D = 3, 6, 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def affine(channels: int = C) -> AffineTransform:
    return AffineTransform(nn.Parameter(noise(channels, seed=1)), nn.Parameter(noise(channels, seed=2).exp()))


class Mixing(nn.Module):
    """Flow of maps whose rows are shifted by the row above, so that its event is `"sample"`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = 2 * x + self.scale * F.pad(x, (0, 0, 1, 0))[:, :, :-1]
        return z, torch.full((len(x),), x[0].numel()).to(x) * torch.tensor(2.0).log()

    def inverse(self, z: Tensor) -> Tensor:
        rows: list[Tensor] = []
        for row in z.unbind(2):
            rows.append((row - (self.scale * rows[-1] if rows else 0)) / 2)
        return torch.stack(rows, dim=2)


def head(networks: Any = None) -> InverseGammaVariance:
    torch.manual_seed(0)
    return InverseGammaVariance(networks or StatisticsNetwork(stride=4, filters=8))


@pytest.fixture(name="batch")
def _batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return images, features and masks."""
    mask = torch.zeros(B, 32, 48)
    mask[0, 4:20, 8:24] = 1
    return noise(B, 3, 32, 48, seed=3).sigmoid(), noise(B, C, 4, 6, seed=4), mask


def test_with_statistics_loss_is_the_objective_of_the_paper(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    image, features, mask = batch
    with torch.random.fork_rng(devices=[]):
        variance = head()
    transform = affine()
    flow = semflow.as_flow(transform)
    model = semflow.with_statistics(flow, variance)
    terms = model.loss(features, image=image, anomaly_mask=mask)

    z = (features - transform.loc[:, None, None]) / transform.scale[:, None, None]
    log_det = -transform.scale.abs().log().sum().expand(B, 4, 6)
    (statistics,) = variance(image, [features])
    right = PRESETS["paper"](z, log_det, "location", SemanticGaussian(), statistics, mask_to_grid(mask, (4, 6)))
    for actual, expected in zip(terms, right, strict=True):
        assert torch.allclose(actual, expected, rtol=1e-5)
    assert terms.bce > 0
    terms.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (transform.loc, transform.scale))
    # The last layer starts at zero, so the layers before it have zero gradients at first.
    assert all(p.grad is not None for p in variance.parameters())
    assert semflow.InverseGammaVariance is InverseGammaVariance


def test_log_prob_with_fixed_variance_equals_scipy(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """x = loc + scale z with z ~ N(0, v I) is normal with mean loc and deviation scale sqrt(v) in each channel."""
    _, features, _ = batch
    transform = affine()
    model = with_statistics(transform, FixedVariance(0.3))
    deviation = transform.scale.detach().double() * 0.3**0.5
    x = features.movedim(1, -1).double()
    right = torch.from_numpy(stats.norm(transform.loc.detach().double(), deviation).logpdf(x)).sum(-1)
    actual = model.log_prob(features)
    assert actual.requires_grad
    assert torch.allclose(actual.double(), right, rtol=1e-5, atol=1e-5)
    control = with_statistics(transform, None).log_prob(features)  # standard normal, v = 1
    right = torch.from_numpy(stats.norm(transform.loc.detach(), transform.scale.detach()).logpdf(x)).sum(-1)
    assert torch.allclose(control.double(), right, rtol=1e-5, atol=1e-5)


def test_log_prob_of_a_sample_flow_is_one_number_per_sample(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    image, features, mask = batch
    model = with_statistics(CallableFlow(Mixing(), "sample"), FixedVariance(0.5))
    z = Mixing()(features)[0]
    right = -0.5 * (z.square() / 0.5 + torch.tensor(2 * torch.pi * 0.5).log()).flatten(1).sum(1)
    right = right + features[0].numel() * torch.tensor(2.0).log()
    assert torch.allclose(model.log_prob(features), right, rtol=1e-5)
    terms = model.loss(features, anomaly_mask=mask)
    terms.total.backward()
    assert [p.grad is not None for p in model.parameters()] == [True]
    assert model.anomaly_map(features, image=image).shape == (B, 32, 48)


def two_scales() -> tuple[list[Tensor], list[Any], InverseGammaVariance]:
    maps = [noise(B, C, 4, 6, seed=4), noise(B, 8, 2, 3, seed=5)]
    networks = [FeatureStatisticsNetwork(C), FeatureStatisticsNetwork(8)]
    return maps, [affine(C), affine(8)], head(networks)


def test_with_statistics_sums_the_loss_over_scales(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, mask = batch
    with torch.random.fork_rng(devices=[]):
        maps, transforms, variance = two_scales()
    model = with_statistics(transforms, variance)
    total = model.loss(maps, anomaly_mask=mask)
    statistics = variance(mask, maps)
    each = [
        with_statistics(t, Given(s)).loss(x, anomaly_mask=mask)
        for t, s, x in zip(transforms, statistics, maps, strict=True)
    ]
    assert torch.allclose(total.total, each[0].total + each[1].total)
    log_probs = model.log_prob(maps)
    assert [p.shape for p in log_probs] == [(B, 4, 6), (B, 2, 3)]
    latents = [(x - t.loc[:, None, None]) / t.scale[:, None, None] for x, t in zip(maps, transforms, strict=True)]
    likely = [SemanticGaussian().log_prob(z, s) / z.shape[1] for z, s in zip(latents, statistics, strict=True)]
    ups = [F.interpolate(p[:, None], (16, 24), mode="bilinear")[:, 0] for p in likely]
    actual = model.anomaly_map(maps, size=(16, 24), log_det=False)
    assert torch.allclose(actual, -(ups[0] + ups[1]) / 2, atol=1e-5)
    assert model.anomaly_map(maps).shape == (B, 4, 6)


class Given(VarianceHead):
    """Head that returns given statistics."""

    def __init__(self, statistics: Any) -> None:
        super().__init__()
        self.statistics = statistics

    def forward(self, images: Tensor, features: list[Tensor]) -> list[Any]:
        return [self.statistics]


def test_anomaly_map_depends_on_neither_batch_nor_mode(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Training mode would normalize over the batch; the modes are restored afterwards."""
    image, features, _ = batch
    with torch.random.fork_rng(devices=[]):
        model = with_statistics(affine(), head())
    model.flows.eval()
    model.loss(features, image=image)  # changes the running statistics
    together = model.anomaly_map(features, image=image)
    alone = torch.cat([model.anomaly_map(features[i : i + 1], image=image[i : i + 1]) for i in range(B)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not together.requires_grad
    assert (model.training, model.head.training, model.flows.training) == (True, True, False)
    unusual = features.clone()
    unusual[1, :, 2, 3] += 8
    changed = model.anomaly_map(unusual, image=image, size=(4, 6)) - model.anomaly_map(
        features, image=image, size=(4, 6)
    )
    assert changed.flatten().argmax() == 1 * 24 + 2 * 6 + 3
    assert torch.count_nonzero(changed) == 1


def test_with_statistics_loads_its_state_dict(batch: tuple[Tensor, Tensor, Tensor], tmp_path: Any) -> None:
    image, features, mask = batch

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flow = coupling_stack(C, 2)
            return with_statistics([flow, affine()], InverseGammaVariance(StatisticsNetwork(stride=4, filters=8)))

    model, other = make(0), make(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model.loss([features, features], image=image, anomaly_mask=mask).total.backward()
        optimizer.step()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    before = other.anomaly_map([features, features], image=image)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    right = model.anomaly_map([features, features], image=image)
    assert not torch.allclose(before, right)
    assert torch.equal(other.anomaly_map([features, features], image=image), right)
    assert torch.equal(copy.deepcopy(model).anomaly_map([features, features], image=image), right)


def test_with_statistics_passes_the_context_to_the_flows(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    _, features, _ = batch
    position = SinusoidalPosition2d(8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = coupling_stack(C, 1, context_channels=8)
    one, two = (with_statistics(f, FixedVariance()) for f in (flow, [flow, flow]))
    log_prob = one.log_prob(features, context=position(4, 6))
    z, log_det = flow(features, position(4, 6))
    right = SemanticGaussian().log_prob(z, FixedVariance()(features, [features])[0]) + log_det
    assert torch.allclose(log_prob, right)
    both = two.log_prob([features, features], context=[position(4, 6), position(4, 6)])
    assert torch.allclose(both[1], right)
    with pytest.raises(ShapeError, match="context must be a list of 2, one per flow, but got PositionTables"):
        two.log_prob([features, features], context=position(4, 6))


def rejected() -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    features, image, mask = noise(B, C, 4, 6), torch.rand(B, 3, 32, 48), torch.zeros(B, 32, 48)
    on_image = with_statistics(affine(), InverseGammaVariance(StatisticsNetwork(stride=4)))
    control = with_statistics(affine(), None)
    joint = PyramidSequence([CrossScaleCoupling((4, 8))])
    return {
        "no image": (
            lambda: on_image.loss(features),
            ShapeError,
            "image must be .* but got None; use FeatureSt",
        ),
        "other images": (
            lambda: on_image.loss(features, image=image[:1]),
            ShapeError,
            "image must hold 3 images",
        ),
        "maps": (
            lambda: on_image.loss([features] * 2, image=image),
            ShapeError,
            "features must be 1 maps",
        ),
        "mask": (
            lambda: on_image.loss(features, image=image, anomaly_mask=mask[0]),
            ShapeError,
            r"mask must be \(B, H, W\)",
        ),
        "masks": (
            lambda: on_image.loss(features, image=image, anomaly_mask=mask[:2]),
            ShapeError,
            "anomaly_mask must be",
        ),
        "control": (lambda: control.loss(features, anomaly_mask=mask), ConfigError, "anomaly_mask must be None"),
        "no head": (lambda: with_statistics(affine(), None, SemanticGaussian()), ConfigError, "give FixedVariance"),
        "no flow": (
            lambda: with_statistics([], None),
            ConfigError,
            "list of flows, one per scale, but got an empty list",
        ),
        "joint": (
            lambda: with_statistics(joint, None),
            ConfigError,
            "but got PyramidSequence, .*; use semflow.Detector",
        ),
        "no event": (
            lambda: with_statistics(Mixing(), None),
            ConfigError,
            "event must be .* for a callable",
        ),
    }


@pytest.mark.parametrize("name", list(rejected()))
def test_with_statistics_rejects_invalid_arguments(name: str) -> None:
    make, kind, message = rejected()[name]
    with pytest.raises(kind, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_with_statistics_uses_the_given_base_and_objective(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    _, features, mask = batch
    base, objective = SemanticGaussian(anomaly_mean=3.0, form="marginal"), Objective(bce=0.5, kl=0.0)
    with torch.random.fork_rng(devices=[]):
        model = with_statistics(affine(), head([FeatureStatisticsNetwork(C)]), base, objective)
    terms = model.loss(features, anomaly_mask=mask)
    assert model.base is base
    assert torch.allclose(terms.total, terms.nll + 0.5 * terms.bce)
    plain = with_statistics(affine(), None)
    assert isinstance(plain.base, StandardNormal)
    terms = plain.loss(features)
    assert torch.allclose(terms.total, -plain.log_prob(features).mean() / C)


def test_detector_and_with_statistics_have_the_same_loss(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    class Features(nn.Module):
        channels = (C,)

        def forward(self, images: Tensor) -> list[Tensor]:
            pooled = F.adaptive_avg_pool2d(images, (4, 6))
            return [torch.cat((pooled, pooled.square()), dim=1)]

    image, _, mask = batch
    with torch.random.fork_rng(devices=[]):
        variance, flow = head(), semflow.as_flow(affine())
    detector = semflow.Detector(Features(), [flow], SemanticGaussian(), variance)
    model = with_statistics(flow, variance)
    right = detector.loss(image, mask, mask_resize="nearest", guard=0)
    actual = model.loss(Features()(image), image=image, anomaly_mask=mask)
    assert torch.allclose(actual.total, right.total, rtol=1e-5)
    assert detector.predict(image).anomaly_map.isfinite().all()


def test_anomaly_map_with_log_det_is_minus_log_prob_of_the_features(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    image, features, _ = batch
    model = with_statistics(affine(), head()).eval()
    with torch.no_grad():
        by_hand = -model.log_prob(features, image=image) / C
    size = (features.shape[2], features.shape[3])
    found = model.anomaly_map(features, image=image, size=size, log_det=True)
    assert torch.allclose(found, by_hand, atol=1e-5)
    without = model.anomaly_map(features, image=image, size=size, log_det=False)
    assert not torch.allclose(found, without, atol=1e-2)


def test_anomaly_map_rejects_log_det_of_sample_flows(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    image, features, _ = batch
    model = with_statistics(CallableFlow(Mixing(), event="sample"), head())
    with pytest.raises(ConfigError, match="log_det must be False for flows of event 'sample', but got True"):
        model.anomaly_map(features, image=image, log_det=True)
