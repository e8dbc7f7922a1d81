"""Torch's global settings of the caller do not reach what is built, fitted, loaded and scored."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import semflow
from helpers.recipe_cases import ALL, images, small, stack
from semflow.recipes import Backbone, Couplings, cflow_ad, save
from semflow.training import calibrate, evaluate, refit


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def meta() -> Iterator[None]:
    """Set a default device that no other tensor may meet, as a GPU beside a detector on the CPU."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS: dict[str, Callable[[], Any]] = {
    "float64": float64, "device": meta, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode,
    "deterministic": deterministic,
}  # fmt: skip
GOOD, OTHERS = images(12), images(9, seed=1)
LABELED = [
    sample._replace(label=k % 2, anomaly_mask=torch.eye(64).bool() if k % 2 else sample.anomaly_mask)
    for k, sample in enumerate(images(4, seed=2))
]


def everything(name: str, run: Path) -> dict[str, Any]:
    """Train, save, load, score, evaluate, calibrate and fit again."""
    detector = small(name)
    epochs = min(1, detector.provenance.training.epochs)
    options = {"epochs": epochs, "batch_size": 4, "progress": False, "output": run}
    semflow.fit(detector, GOOD, calibration=OTHERS, **options)
    again = semflow.fit(small(name), GOOD, calibration=OTHERS, resume=True, **options)
    loaded = semflow.load(run)
    x = stack(LABELED)
    found = {"score": detector.predict(x).score, "resumed": again.predict(x).score, "loaded": loaded.predict(x).score}
    found |= {"map": loaded(x).anomaly_map.detach(), **evaluate(loaded, LABELED), **loaded.state_dict()}
    calibrate(loaded, OTHERS[:9], 0.1)
    refit(loaded, GOOD)
    return found | {"refitted": loaded.predict(x).score}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = everything(name, tmp_path_factory.mktemp(name) / "run")
        return known[name]

    return get


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["sanflow", "memory_flow", "padim", "differnet"])
def test_results_do_not_depend_on_global_settings(name: str, setting: str, expected, tmp_path: Path) -> None:
    right = expected(name)
    with SETTINGS[setting]():
        found = everything(name, tmp_path / "run")
    assert found.keys() == right.keys()
    for key, value in right.items():
        same = torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value
        assert same, key
    trained = semflow.fit(semflow.load(tmp_path / "run"), GOOD, batch_size=4, progress=False)  # no inference tensors
    assert trained.predict(stack(LABELED)).score.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_a_run_is_loaded_in_its_own_type(name: str, tmp_path: Path) -> None:
    detector = small(name)
    detector.fit_base([stack(GOOD)])
    detector.fit_score([stack(GOOD)])
    x = stack(LABELED)
    for kind, made in (("single", detector), ("double", detector.double())):
        score = made.predict(x).score
        save(made, tmp_path / kind)
        for setting in (nullcontext, float64):
            with setting():
                loaded = semflow.load(tmp_path / kind)
            for key, value in made.state_dict().items():
                assert loaded.state_dict()[key].dtype == value.dtype, key
            torch.testing.assert_close(loaded.predict(x).score, score, rtol=0, atol=0)


FRESH = """
import sys, torch
detector = torch.load(sys.argv[1], weights_only=False)
print(detector.predict(torch.full((1, 3, 32, 32), 0.3)).score.item())
"""


def small_detector() -> semflow.Detector:
    return cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4)).eval()


def test_a_detector_is_unpickled_in_a_process_without_timm(tmp_path: Path) -> None:
    """Pickle imports the classes of a backbone by itself, also where torch and torchvision do not match."""
    detector = small_detector()
    torch.save(detector, tmp_path / "d.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "d.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(detector.predict(torch.full((1, 3, 32, 32), 0.3)).score.item(), abs=1e-6)


def test_timm_is_imported_before_the_classes_of_a_backbone_are_looked_up() -> None:
    """So that it does not matter whether torch and torchvision match on the machine of this test."""
    for pickled in (small_detector(), small_detector().features):
        data = pickle.dumps(pickled, protocol=2)
        assert type(pickle.loads(data)) is type(pickled)
        assert 0 < data.index(b"semflow.features.timm_module\n_imported") < data.index(b"timm.models")


def test_a_spawned_process_predicts() -> None:
    context = torch.multiprocessing.get_context("spawn")
    detector, x = small_detector(), torch.full((1, 3, 32, 32), 0.3)
    with context.Pool(1) as pool:
        found = pool.apply_async(detector.predict, (x,)).get(timeout=120)
    torch.testing.assert_close(found.score, detector.predict(x).score)
