"""Where the host waits for a GPU in a training step and in `predict`: nowhere but at the places listed here."""

import copy

import pytest
import torch

from helpers.emulated_cuda import CUDA, emulated_cuda
from helpers.recipe_cases import ALL, WITH_AND_WITHOUT, fitted, images, small, stack
from semflow._devices import to_device
from semflow.data import collate
from semflow.errors import ShapeError, TrainingError
from semflow.synthesis import CutPaste, SyntheticAnomalies
from semflow.training import TrainingConfig
from semflow.training.stepping import adam, train_on_batch
from semflow.training.watching import Watch

SEARCH = "functional/neighbors.py nearest: nonzero"
"""Queries for which rounding could have hidden a neighbor are searched again: how many is known on the GPU only."""
RANGE = "detectors/inputs.py check_values: copy to the host"
"""Images that are on the GPU already have their range checked there; those in host memory, before they are copied."""
INSIDE = "detectors/regions.py check_inside: _local_scalar_dense"
"""An image without a pixel in its region of interest has no score."""
PREDICT = {"patchcore": {SEARCH}, "memory_flow": {SEARCH}}

BATCH = collate([SyntheticAnomalies(images(4), CutPaste(), seed=1)[i] for i in range(4)])


@pytest.mark.parametrize("name", ALL)
def test_predict_waits_only_where_it_must(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, given = copy.deepcopy(fitted(name)), stack(images(3, 1))
    expected = detector.predict(given)
    with emulated_cuda(monkeypatch) as device:
        detector.to(CUDA)
        device.waits.clear()
        found = detector.predict(given)
        assert set(device.waits) == PREDICT.get(name, set())
        there = given.to(CUDA)
        device.waits.clear()
        again = detector.predict(there)
        assert set(device.waits) == PREDICT.get(name, set()) | {RANGE}
        assert device.waits[RANGE] == 1
        for result in (found, again):
            assert {x.device for x in (*result[:2], *result[2], *result[3:])} == {CUDA}
            torch.testing.assert_close(result.score.cpu(), expected.score, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(result.anomaly_map.cpu(), expected.anomaly_map, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "settings"), [*WITH_AND_WITHOUT, ("memory_flow", {})])
def test_training_step_never_waits(name: str, settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small(name, settings)
    assert not step(detector, detector.provenance.training, monkeypatch)


OPTIONS = {
    "bf16": {"precision": "bf16"},
    "accumulate": {"accumulate": 2, "batch_size": 2},
    "groups": {"locations": 64},
    "groups in bf16": {"locations": 64, "precision": "bf16"},
    "tilt": {"tilt": 0.1},
    "no clipping": {"clip": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_the_training_do_not_wait(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not step(small("sanflow"), TrainingConfig(**OPTIONS[options]), monkeypatch)


@pytest.mark.parametrize("locations", [pytest.param(None, marks=pytest.mark.slow), 64])
@pytest.mark.parametrize("kind", ["known maps", "region", "regions of images"])
def test_known_maps_and_regions_do_not_wait(kind: str, locations: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, given = small("cflow_ad"), BATCH.images
    region = torch.ones(64, 64).tril() > 0
    if kind == "region":
        detector.set_region(region)
    elif kind == "regions of images":
        given = torch.cat([given, region.float().expand(4, 1, 64, 64)], 1)
    training = TrainingConfig(locations=locations)
    assert not step(detector, training, monkeypatch, given, with_maps=kind == "known maps")


@pytest.mark.parametrize("kind", ["region", "regions of images", "both"])
def test_regions_wait_once_in_predict(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, given = copy.deepcopy(fitted("cflow_ad")), stack(images(3, 1))
    region = torch.ones(64, 64).tril() > 0
    if kind != "regions of images":
        detector.set_region(region)
    if kind != "region":
        given = torch.cat([given, region.float().expand(3, 1, 64, 64)], 1)
    expected = detector.predict(given)
    with emulated_cuda(monkeypatch) as device:
        detector.to(CUDA)
        device.waits.clear()
        found = detector.predict(given)
        assert device.waits == {INSIDE: 1}
        torch.testing.assert_close(found.score.cpu(), expected.score, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.anomaly_map.cpu(), expected.anomaly_map, rtol=1e-3, atol=1e-3)


def test_pinned_memory_of_the_caller_is_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, given = [], torch.ones(4)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda x: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: sources.append(x.data_ptr()) or x)
    with emulated_cuda(monkeypatch) as device:
        assert to_device(given, CUDA).tolist() == [1.0] * 4
    assert sources not in ([], [given.data_ptr()])
    assert all("to_device" not in place for place in device.waits)


WRONG = {
    "bytes": (stack(images(2)) * 255, r"images must lie in \[0, 1\], but got values from"),
    "NaN": (stack(images(2)) * torch.nan, r"images must lie in \[0, 1\], but got values from nan"),
    "region": (torch.full((2, 4, 64, 64), 0.5), "images must have 0 or 1 as their last channel"),
    "empty": (torch.cat([stack(images(2)), torch.zeros(2, 1, 64, 64)], 1), "images must have pixels in their region"),
}


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_images_are_still_refused(kind: str, on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, (given, message) = copy.deepcopy(fitted("cflow_ad")), WRONG[kind]
    with emulated_cuda(monkeypatch):
        detector.to(CUDA)
        with pytest.raises(ShapeError, match=message):
            detector.predict(given.to(CUDA) if on_device else given)


@pytest.mark.parametrize("region", [None, torch.ones(64, 64).tril() > 0])
def test_values_are_not_read_while_a_cuda_graph_is_captured(
    region: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = small("fastflow").eval()
    if region is not None:
        detector.set_region(region)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with emulated_cuda(monkeypatch) as device:
        given = BATCH.images.to(detector.to(CUDA).device)
        device.waits.clear()
        detector.predict(given)
        assert not device.waits


def test_losses_that_are_not_finite_are_found_at_the_next_check(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small("fastflow").train()
    next(iter(detector.flows.parameters())).data.fill_(torch.nan)
    training = TrainingConfig(clip=None)
    with emulated_cuda(monkeypatch) as device:
        detector.to(CUDA)
        optimizer, watch, given = adam(detector, training), Watch(None, every=3), BATCH.images.to(CUDA)
        device.waits.clear()
        for _ in range(2):
            train_on_batch(detector, optimizer, training, given, watch=watch)
        assert not device.waits
        with pytest.raises(TrainingError, match="must be finite, but got nan at step 1"):
            train_on_batch(detector, optimizer, training, given, watch=watch)


def step(detector, training, monkeypatch, given=BATCH.images, with_maps: bool = False) -> dict[str, int]:
    """Return where the host waits in two steps on the emulated device."""
    masks = None if detector.provenance.synthesis is None or with_maps else BATCH.anomaly_masks
    with emulated_cuda(monkeypatch) as device:
        detector.train().to(CUDA)
        optimizer, watch = adam(detector, training), Watch(training.clip, every=32)
        given, masks = (None if x is None else x.to(CUDA) for x in (given, masks))
        maps = detector.feature_maps(given) if with_maps else None
        device.waits.clear()
        for _ in range(2):
            terms = train_on_batch(detector, optimizer, training, given, masks, maps, watch=watch)
        waits = dict(device.waits)
        assert terms.device == CUDA
        assert terms.isfinite().all()
        watch.check()
        return waits
