"""What is different on a GPU: copies, captured graphs, selection on the device, coarse products, training, resuming."""

from pathlib import Path

import pytest
import torch

from helpers.devices import DEVICE, exact_products
from helpers.recipe_cases import ALL, images, small, stack
from semflow import fit, load
from semflow._devices import to_device
from semflow.functional import k_center, nearest
from semflow.metrics import ImageAccumulator, PixelAccumulator

pytestmark = pytest.mark.cuda


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_copies_that_do_not_wait_are_complete() -> None:
    given = [drawn(8, 3, 256, 256, seed=k) for k in range(4)]
    there = [to_device(x, torch.device(DEVICE)) for x in given]
    for x, y in zip(given, there, strict=True):
        assert torch.equal(x, y.cpu())
        assert y.device.type == DEVICE


def test_copies_hold_what_pinned_memory_held_when_they_were_asked_for() -> None:
    if DEVICE == "cpu":
        pytest.skip("a CPU needs no pinned memory")
    given = torch.zeros(2**20).pin_memory()
    to_device(given, torch.device(DEVICE))
    torch.cuda._sleep(10**9)
    there = to_device(given, torch.device(DEVICE))
    given.fill_(1.0)
    assert not there.any()


@pytest.mark.parametrize("name", ["sanflow", "cflow_ad", "fastflow", "differnet", "cs_flow", "msflow"])
def test_predictions_can_be_captured_in_a_graph(name: str) -> None:
    if DEVICE == "cpu":
        pytest.skip("a CPU has no graphs")
    detector = small(name).to(DEVICE).eval()
    static, other = (stack(images(2, seed)).to(DEVICE) for seed in (0, 1))
    with torch.no_grad():
        expected = detector(other)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                detector(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = detector(static)
        static.copy_(other)
        graph.replay()
    torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [3, 64, 300])
def test_coreset_is_that_of_the_direct_method(channels: int) -> None:
    x = drawn(3000, channels)
    found = k_center(x.to(DEVICE), 700, start=5)
    distances, expected = torch.full((3000,), torch.inf, dtype=torch.float64), [5]
    while len(expected) < 700:
        distances = torch.minimum(distances, (x.double() - x[expected[-1]].double()).norm(dim=1))
        expected.append(int(distances.argmax()))
    assert found.indices.device.type == DEVICE
    # Near ties may be broken by rounding, after which both selections go on with other vectors.
    assert found.indices[:100].tolist() == expected[:100]
    radius = torch.cdist(x.double(), x[found.indices.cpu()].double()).amin(1).max().item()
    assert found.radius == pytest.approx(radius, rel=1e-4)
    distances = torch.minimum(distances, (x.double() - x[expected[-1]].double()).norm(dim=1))
    assert radius == pytest.approx(distances.max().item(), rel=0.02)


@pytest.mark.parametrize("coarse", ["highest", "high", "medium"])
@pytest.mark.parametrize("k", [1, 5])
def test_neighbors_are_exact_whatever_the_precision_of_products(coarse: str, k: int) -> None:
    queries, memory = drawn(300, 48), drawn(5000, 48, seed=1) + 10
    queries = torch.cat([queries + 10, memory[:50]])
    expected = torch.cdist(queries.double(), memory.double()).topk(k, largest=False).values
    with exact_products(coarse):
        found, rows = nearest(queries.to(DEVICE), memory.to(DEVICE), k)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-3)
    true = (queries[:, None].double() - memory[rows.cpu()].double()).norm(dim=2)
    torch.testing.assert_close(found.cpu().double(), true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_training_and_fitting_give_nearly_the_scores_of_a_cpu(name: str, tmp_path: Path) -> None:
    good = images(12)
    options = {"epochs": None if name in ("padim", "patchcore", "spade", "memory_flow") else 2, "progress": False}
    here, there = (fit(small(name), good, device=device, **options) for device in ("cpu", DEVICE))
    assert there.device.type == DEVICE
    given = stack(images(6, seed=1))
    expected, found = here.predict(given).score, there.predict(given.to(DEVICE)).score.cpu()
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


def test_a_run_is_resumed_on_the_device_and_loaded_on_the_cpu(tmp_path: Path) -> None:
    good, options = images(12), {"device": DEVICE, "progress": False, "output": tmp_path}
    fit(small("sanflow"), good, epochs=1, **options)
    again = fit(small("sanflow"), good, epochs=2, resume=True, **options)
    given = stack(images(4, seed=1))
    expected = again.predict(given.to(DEVICE)).score.cpu()
    torch.testing.assert_close(load(tmp_path, device="cpu").predict(given).score, expected, rtol=1e-3, atol=1e-3)


def test_accumulators_take_maps_on_the_device() -> None:
    scores, labels = torch.rand(20), torch.arange(20) % 2
    maps, masks = torch.rand(4, 16, 16), torch.rand(4, 16, 16) > 0.8
    for make, given in ((ImageAccumulator, (scores, labels)), (PixelAccumulator, (maps, masks))):
        here, there = make(), make()
        here.update(*given)
        there.update(*(x.to(DEVICE) for x in given))
        assert here.compute() == there.compute()
