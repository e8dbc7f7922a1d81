"""CoresetAccumulator: equal to k_center in memory, bounded memory beyond it, and a radius that is never too small."""

import pytest
import torch
from torch import Tensor

from semflow.errors import ConfigError, ShapeError
from semflow.functional import CoresetAccumulator, StreamedCoreset, k_center
from semflow.functional import coreset_stream as module
from semflow.functional.coreset import covered

CHANNELS = 6
ROW = CHANNELS * 4  # bytes


def drawn(number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(30, CHANNELS, generator=generator) * 4
    return centers[torch.arange(number) * 30 // number] + torch.randn(number, CHANNELS, generator=generator)


def streamed(x: Tensor, accumulator: CoresetAccumulator, size: int = 37) -> StreamedCoreset:
    for part, ids in zip(x.split(size), (torch.arange(len(x)) // 10).split(size), strict=True):
        accumulator.update(part, ids)
    return accumulator.result()


def check(found: StreamedCoreset, x: Tensor, count: int) -> None:
    assert len(found.vectors) == count
    assert torch.equal(found.vectors, x[found.rows])
    assert torch.equal(found.ids, found.rows // 10)
    true = float(torch.cdist(x.double(), found.vectors.double()).amin(1).max())
    assert true <= found.radius * (1 + 1e-5)


@pytest.mark.parametrize("count", [0.1, 25])
@pytest.mark.parametrize("projection", [None, 3])
def test_equals_k_center_if_all_fits(count: float, projection: int | None) -> None:
    x = drawn(500)
    found = streamed(x, CoresetAccumulator(count, limit_bytes=500 * ROW, projection=projection, seed=3))
    expected = k_center(x, count, projection=projection, seed=3)
    assert torch.equal(found.rows, expected.indices)
    assert found.radius == expected.radius
    assert torch.equal(found.vectors, x[expected.indices])


@pytest.mark.parametrize("kept", [60, 100, 499])
@pytest.mark.parametrize("size", [1, 37, 500])
@pytest.mark.parametrize("count", [0.05, 25])
def test_radius_bounds_the_distances_of_replaced_vectors(kept: int, size: int, count: float) -> None:
    x = drawn(500)
    accumulator = CoresetAccumulator(count, limit_bytes=kept * ROW)
    check(streamed(x, accumulator, size), x, 25)
    assert len(accumulator._kept.vectors) <= kept


def test_the_true_radius_stays_near_that_of_the_whole_selection() -> None:
    x = drawn(3000)
    found = streamed(x, CoresetAccumulator(100, limit_bytes=400 * ROW))  # fourteen reductions
    whole = k_center(x, 100).radius
    assert float(torch.cdist(x, found.vectors).amin(1).max()) < 1.3 * whole
    assert found.radius < 5 * whole


@pytest.mark.parametrize("kept", [60, 500])
def test_merged_accumulators_continue_the_stream(kept: int) -> None:
    x = drawn(500)
    halves = [CoresetAccumulator(25, limit_bytes=kept * ROW, seed=1) for _ in range(2)]
    for half, part, ids in zip(halves, x.split(250), (torch.arange(500) // 10).split(250), strict=True):
        half.update(part, ids)
    halves[0].merge(halves[1])
    assert halves[0].seen == 500
    found = halves[0].result()
    check(found, x, 25)
    if kept == 500:
        assert torch.equal(found.rows, k_center(x, 25, seed=1).indices)


def test_result_can_be_taken_on_the_way() -> None:
    x = drawn(200)
    accumulator = CoresetAccumulator(10)
    accumulator.update(x[:100], torch.zeros(100))
    assert torch.equal(accumulator.result().rows, k_center(x[:100], 10).indices)
    accumulator.update(x[100:], torch.zeros(100))
    assert torch.equal(accumulator.result().rows, k_center(x, 10).indices)


def test_later_changes_of_a_batch_do_not_matter() -> None:
    x, accumulator = drawn(50), CoresetAccumulator(10)
    batch = x.clone()
    accumulator.update(batch, torch.zeros(50))
    batch.zero_()
    assert torch.equal(accumulator.result().vectors, x[k_center(x, 10).indices])


def test_duplicates_and_few_vectors_give_fewer() -> None:
    accumulator = CoresetAccumulator(10, limit_bytes=20 * ROW)
    accumulator.update(torch.ones(100, CHANNELS), torch.zeros(100))
    found = accumulator.result()
    assert found.vectors.tolist() == [[1.0] * CHANNELS]
    assert found.radius == 0


def test_a_share_that_does_not_fit_gives_fewer_with_their_radius() -> None:
    x = drawn(500)
    with pytest.warns(UserWarning, match=r"limit_bytes must hold 250 vectors, the share 0\.5 of all, but got"):
        found = streamed(x, CoresetAccumulator(0.5, limit_bytes=100 * ROW))
    assert 75 <= len(found.vectors) <= 100
    check(found, x, len(found.vectors))


def test_a_limit_that_is_lowered_loses_no_vector() -> None:
    x = drawn(950)
    accumulator = CoresetAccumulator(10, limit_bytes=900 * ROW)
    accumulator.update(x[:900], torch.arange(900) // 10)
    accumulator.limit_bytes = 400 * ROW
    accumulator.update(x[900:], torch.arange(900, 950) // 10)
    check(accumulator.result(), x, 10)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^count must be positive, but got 0$"):
        CoresetAccumulator(0)
    with pytest.raises(
        ConfigError, match=r"^count must be a share above 0 and up to 1, or a whole number, but got 1.5$"
    ):
        CoresetAccumulator(1.5)
    accumulator = CoresetAccumulator(10, limit_bytes=19 * ROW)
    with pytest.raises(ShapeError, match=r"^x must be added with update before result, but got no vectors$"):
        accumulator.result()
    with pytest.raises(ShapeError, match=r"^x must be floats of shape \(n, C\), but got torch.float32 \(6,\)$"):
        accumulator.update(torch.zeros(6), torch.zeros(6))
    with pytest.raises(ShapeError, match=r"^ids must be \(5,\), but got \(4,\)$"):
        accumulator.update(torch.zeros(5, CHANNELS), torch.zeros(4))
    with pytest.raises(ConfigError, match=r"^limit_bytes must hold twice the count of vectors, but got 456$"):
        accumulator.update(torch.zeros(5, CHANNELS), torch.zeros(5))


def test_selection_happens_on_a_device_unless_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    x, asked = drawn(300), []
    expected = streamed(x, CoresetAccumulator(0.2, limit_bytes=200 * ROW))

    def full(given: Tensor, *others: object) -> object:
        asked.append(given.device.type)
        if given.device.type == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return covered(given, *others)

    monkeypatch.setattr(module, "covered", full)
    found = streamed(x, CoresetAccumulator(0.2, limit_bytes=200 * ROW, device=torch.device("meta")))
    assert asked == ["meta", "cpu"] * (len(asked) // 2)
    assert torch.equal(found.rows, expected.rows)
    assert found.radius == expected.radius
