"""Where the host waits for a GPU in a training step and in `predict`: nowhere but at the places listed here."""

import copy
from functools import cache

import pytest
import torch

from helpers.emulated_cuda import CUDA, emulated_cuda
from helpers.recipe_cases import ALL, FITTED, WITH_AND_WITHOUT, images, small, stack
from semflow.data import collate
from semflow.detectors import Detector
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


@cache
def fitted(name: str) -> Detector:
    """Return a calibrated detector on the CPU."""
    made, batch = small(name).eval(), stack(images(9))
    made.prepare([batch])
    made.fit_base([batch])
    made.fit_score([batch])
    made.calibrate([stack(images(9, 5))], 0.1)
    return made


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


@pytest.mark.parametrize("with_maps", [False, True])
@pytest.mark.parametrize(("name", "settings"), [*WITH_AND_WITHOUT, ("memory_flow", {})])
def test_training_step_never_waits(name: str, settings: dict, with_maps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small(name, settings)
    waits = step(detector, detector.provenance.training, with_maps, monkeypatch)
    assert not waits


def step(detector: Detector, training: TrainingConfig, with_maps: bool, monkeypatch) -> dict[str, int]:
    """Return where the host waits in two steps on the emulated device."""
    masks = None if detector.provenance.synthesis is None or with_maps else BATCH.anomaly_masks
    with emulated_cuda(monkeypatch) as device:
        detector.train().to(CUDA)
        optimizer, watch = adam(detector, training), Watch(training.clip, every=32)
        given, masks = (None if x is None else x.to(CUDA) for x in (BATCH.images, masks))
        maps = detector.feature_maps(given) if with_maps else None
        device.waits.clear()
        for _ in range(2):
            terms = train_on_batch(detector, optimizer, training, given, masks, maps, watch=watch)
        waits = dict(device.waits)
        assert terms.device == CUDA
        assert terms.isfinite().all()
        watch.check()
        return waits
