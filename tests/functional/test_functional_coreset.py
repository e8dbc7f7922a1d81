"""k_center against the direct method in float64, its guarantees, ties and duplicates, and continued selections."""

import itertools

import pytest
import torch
from torch import Tensor

from semflow.errors import ConfigError, ShapeError
from semflow.features.timm_module import load_timm
from semflow.functional import coreset as module
from semflow.functional import k_center, sparse_projection


def direct(x: Tensor, count: int, start: int) -> Tensor:
    """Update all distances after each selection in float64."""
    x = x.double()
    distances, found = torch.full((len(x),), torch.inf, dtype=torch.float64), [start]
    while len(found) < count:
        distances = torch.minimum(distances, (x - x[found[-1]]).square().sum(1).sqrt())
        found.append(int(distances.argmax()))
    return torch.tensor(found)


def covering_radius(x: Tensor, centers: Tensor) -> float:
    x = x.double()
    return float(torch.stack([(x - center).square().sum(1) for center in x[centers]]).amin(0).max().sqrt())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(number: int, channels: int, seed: int = 0) -> Tensor:
    """Draw vectors in clusters, with a decaying spectrum and far from the origin, as features are."""
    centers = drawn(12, channels, seed=seed) * 3
    scales = torch.linspace(0, 4, channels).neg().exp()
    owners = torch.randint(12, (number,), generator=torch.Generator().manual_seed(seed))
    return (centers[owners] + drawn(number, channels, seed=seed + 1)) * scales + 20


@pytest.fixture(params=[16, 1024])
def _batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", request.param)
    monkeypatch.setattr(module, "PIECE", request.param * 200)


@pytest.mark.usefixtures("_batch")
@pytest.mark.parametrize(("number", "channels"), [(600, 2), (600, 40), (300, 200), (5, 3)])
@pytest.mark.parametrize("kind", [drawn, correlated])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_direct_method(number: int, channels: int, kind: object, dtype: torch.dtype) -> None:
    x = (drawn if kind is drawn else correlated)(number, channels).to(dtype)
    indices, radius = k_center(x, count := number * 2 // 3, start=number // 2)
    assert torch.equal(indices, direct(x, count, number // 2))
    assert radius == pytest.approx(covering_radius(x, indices), rel=1e-5)


@pytest.mark.usefixtures("_batch")
def test_the_first_of_equally_far_vectors_is_selected() -> None:
    grid = torch.cartesian_prod(*[torch.arange(6.0)] * 3)  # distances are equal in float32 and float64
    for x in (grid, torch.eye(30), grid.repeat(2, 1)):
        count = len(x) // 2
        assert torch.equal(k_center(x, count, start=7).indices, direct(x, count, 7))


def test_equals_anomalib() -> None:
    pytest.importorskip("anomalib", reason="anomalib is an extra: semflow[peers]")
    load_timm()  # lets anomalib import torchvision without its operators
    from anomalib.models.components.sampling import KCenterGreedy

    x = correlated(800, 24)
    sampler = KCenterGreedy(x, sampling_ratio=0.5)
    theirs = sampler.select_coreset_idxs()
    assert k_center(sampler.features, 0.5, start=theirs[0]).indices.tolist() == theirs


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_equals_the_direct_method_at_extreme_scales(scale: float, shift: float) -> None:
    x = (drawn(300, 8).double() + shift).mul(scale).float()
    assert torch.equal(k_center(x, 100, start=0).indices, direct(x, 100, 0))


def test_near_duplicates_are_told_apart() -> None:
    # Products of matrices cannot: differences are 1e-5 of the norms.
    x = (drawn(40, 1, 16) + 1e-5 * drawn(40, 20, 16, seed=1)).reshape(-1, 16)
    indices, radius = k_center(x, 400, start=3)
    assert torch.equal(indices, direct(x, 400, 3))
    assert radius == pytest.approx(covering_radius(x, indices), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_radius_is_at_most_twice_the_optimum(seed: int) -> None:
    x = drawn(11, 2, seed=seed)
    optimum = min(covering_radius(x, torch.tensor(some)) for some in itertools.combinations(range(11), 3))
    assert optimum <= k_center(x, 3, seed=seed).radius * (1 + 1e-6) <= 2 * optimum * (1 + 2e-6)


@pytest.mark.parametrize("stopped", [1, 40, 199, 200])
def test_a_stopped_selection_continues(stopped: int) -> None:
    x = correlated(500, 12)
    whole = k_center(x, 200, seed=4)
    continued = k_center(x, 200, chosen=whole.indices[:stopped])
    assert torch.equal(continued.indices, whole.indices)
    assert continued.radius == whole.radius


def test_stops_when_only_duplicates_are_left() -> None:
    x = drawn(20, 5).repeat(3, 1)
    indices, radius = k_center(x, 40, start=2)
    assert sorted(indices.tolist()) == list(range(20))
    assert radius == 0
    assert k_center(torch.ones(9, 4), 1.0).indices.shape == (1,)
    assert k_center(torch.ones(1, 4), 1) == (torch.tensor([0]), 0.0)


def test_all_vectors_are_selected_once() -> None:
    assert sorted(k_center(drawn(1500, 3), 1.0).indices.tolist()) == list(range(1500))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_precision(dtype: torch.dtype) -> None:
    x = correlated(300, 30).to(dtype)
    assert torch.equal(k_center(x, 90, start=0).indices, k_center(x.float(), 90, start=0).indices)


def test_neither_autocast_nor_gradients_change_the_selection() -> None:
    x = correlated(300, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = k_center(x.requires_grad_(), 90, start=0, projection=12)
    assert torch.equal(found.indices, k_center(x.detach(), 90, start=0, projection=12).indices)


def test_shares_are_rounded_down_and_at_least_one() -> None:
    x = drawn(59, 3)
    assert [len(k_center(x, share).indices) for share in (0.001, 0.1, 1.0)] == [1, 5, 59]


def test_the_seed_draws_the_start() -> None:
    x = drawn(300, 3)
    assert torch.equal(k_center(x, 9, seed=1).indices, k_center(x, 9, seed=1).indices)
    assert len({int(k_center(x, 1, seed=seed).indices) for seed in range(8)}) > 4


def test_projection_is_the_selection_in_projected_vectors() -> None:
    x = correlated(400, 50)
    found = k_center(x, 60, start=5, projection=20, seed=3)
    assert torch.equal(found.indices, direct(x @ sparse_projection(50, 20, seed=3), 60, 5))


def test_projection_keeps_squared_norms_on_average() -> None:
    matrix = sparse_projection(400, 3000)
    x = drawn(5, 400)
    torch.testing.assert_close((x @ matrix).square().sum(1), x.square().sum(1), rtol=0.1, atol=0)
    assert float((matrix != 0).float().mean()) == pytest.approx(400**-0.5, rel=0.02)
    assert torch.equal(sparse_projection(1, 4).abs(), torch.full((1, 4), 0.5))  # density 1


def test_wrong_arguments_are_named() -> None:
    x = drawn(6, 2)
    with pytest.raises(ConfigError, match=r"^count must be between 1 and the 6 vectors, but got 7$"):
        k_center(x, 7)
    with pytest.raises(
        ConfigError, match=r"^count must be a share above 0 and up to 1, or a whole number, but got 1.5$"
    ):
        k_center(x, 1.5)
    with pytest.raises(ConfigError, match=r"^start must be between 0 and 5, but got 6$"):
        k_center(x, 2, start=6)
    with pytest.raises(ConfigError, match=r"^start must be None with chosen, whose first index it is, but got 1$"):
        k_center(x, 2, start=1, chosen=torch.tensor([0]))
    with pytest.raises(ShapeError, match=r"^chosen must be 1 to 2 integers, but got torch.int64 \(3,\)$"):
        k_center(x, 2, chosen=torch.arange(3))
    with pytest.raises(ShapeError, match=r"^chosen must be between 0 and 5, but got -1 to 4$"):
        k_center(x, 2, chosen=torch.tensor([-1, 4]))
    with pytest.raises(ShapeError, match=r"^x must be floats of shape \(N, C\), but got torch.float32 \(0, 2\)$"):
        k_center(x[:0], 1)
    for value in (torch.nan, torch.inf, 1e30):
        with pytest.raises(
            ShapeError, match=r"^x must have finite squared norms, but got NaN, infinity or an overflow$"
        ):
            k_center(torch.tensor([[0.0], [value]]), 1)
    with pytest.raises(ConfigError, match=r"^channels and size must be positive, but got 2 and 0$"):
        k_center(x, 1, projection=0)
