"""`device="auto"` is the default in Python, as on the command line."""

import inspect
from pathlib import Path

import pytest
import torch

import semflow
from semflow.app import export
from semflow.data import Sample
from semflow.detectors import Detector
from semflow.recipes import Backbone, Couplings, cflow_ad
from semflow.training import fitting, loading


class CudaChosenError(Exception):
    pass


def small() -> Detector:
    return cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim that there is a GPU, and stop where the detector is moved to it."""

    def to(self: Detector, device: torch.device) -> Detector:
        if torch.device(device).type == "cuda":
            raise CudaChosenError
        return self

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Detector, "to", to)


@pytest.mark.usefixtures("gpu")
def test_fit_and_load_use_the_gpu(tmp_path: Path) -> None:
    good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(4)]
    semflow.save(small(), tmp_path)
    with pytest.raises(CudaChosenError):
        semflow.fit(small(), good, progress=False)
    with pytest.raises(CudaChosenError):
        semflow.load(tmp_path)
    assert semflow.load(tmp_path, device="cpu").device.type == "cpu"
    assert semflow.fit(small(), good, epochs=0, progress=False, device="cpu").device.type == "cpu"


def test_without_a_gpu_they_use_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert semflow.load(semflow.save(small(), tmp_path)).device.type == "cpu"
    assert loading.check_device("auto").type == "cpu"


def test_the_default_is_the_same_everywhere() -> None:
    for function in (fitting.fit, semflow.load, export.load):
        assert inspect.signature(function).parameters["device"].default == "auto"


def test_predict_brings_images_to_the_detector() -> None:
    """Like a GPU, the device `meta` refuses tensors of other devices, so the result shows where the images went."""
    detector = small().to("meta")
    seen = []
    detector.forward = lambda images: seen.append(images.device.type)
    detector.predict(torch.rand(1, 3, 32, 32))
    detector.predict(torch.rand(1, 3, 32, 32, device="meta"))
    assert seen == ["meta", "meta"]
