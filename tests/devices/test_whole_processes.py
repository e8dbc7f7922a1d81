"""From training to an exported file on a GPU: the whole of it on the emulated device, with the results of the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.emulated_cuda import CUDA, emulated_cuda
from helpers.recipe_cases import ALL, images, small, stack
from semflow.app.export import load as open_exported
from semflow.app.export import save as export
from semflow.detectors import Detector
from semflow.errors import ShapeError
from semflow.metrics import HistogramAccumulator, ImageAccumulator, PixelAccumulator, aupro
from semflow.recipes import load, save
from semflow.synthesis import CutPaste
from semflow.training import Callback, calibrate, evaluate, fit

GOOD, HELD_OUT, TEST = images(6), images(9, 5), images(4, 7)
TEST = [s._replace(label=k % 2, anomaly_mask=torch.full((64, 64), k % 2 > 0)) for k, s in enumerate(TEST)]
NAMES = [pytest.param(name, marks=() if name == "padim" else pytest.mark.slow) for name in ALL]


def trained(name: str, device: torch.device, output: Path) -> Detector:
    detector = small(name)
    made = fit(detector, GOOD, **options(detector), device=device, output=output, progress=False)
    return calibrate(made, HELD_OUT, 0.1)


def options(detector: Detector) -> dict[str, int]:
    return {"epochs": 1, "batch_size": 3} if detector.trainable() else {}


@pytest.mark.parametrize("name", NAMES)
def test_everything_runs_on_one_device_with_the_results_of_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = stack(TEST)
    here = trained(name, torch.device("cpu"), tmp_path / "here")
    expected, metrics = here.predict(given), evaluate(here, TEST)
    with emulated_cuda(monkeypatch) as device:
        there = trained(name, CUDA, tmp_path / "there")
        found = there.predict(given)
        assert {x.device for x in (*there.parameters(), *there.buffers(), *found[:2])} == {CUDA}
        assert device.waits
        torch.testing.assert_close(found.score.cpu(), expected.score, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.anomaly_map.cpu(), expected.anomaly_map, rtol=1e-2, atol=1e-2)
        assert evaluate(there, TEST) == pytest.approx(metrics, abs=1e-3)
        save(there, tmp_path / "saved")
        again = load(tmp_path / "saved", device=CUDA)
        torch.testing.assert_close(again.predict(given).score.cpu(), found.score.cpu(), rtol=1e-5, atol=1e-5)
        export(there, tmp_path / "model.pt2", input="float32")
        assert there.device == CUDA
        scores = found.score.cpu()
    on_cpu = load(tmp_path / "saved", device="cpu").predict(given)  # a file of a GPU, on a machine without one
    torch.testing.assert_close(on_cpu.score, scores, rtol=1e-4, atol=1e-4)
    exported = open_exported(tmp_path / "model.pt2", "cpu").predict(given)
    torch.testing.assert_close(exported.score, scores, rtol=1e-3, atol=1e-3)


class Interrupting(Callback):
    def epoch(self, detector, record) -> None:
        raise RuntimeError("interrupted")


def test_interrupted_run_is_resumed_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"epochs": 2, "batch_size": 3, "device": CUDA, "progress": False}
    with emulated_cuda(monkeypatch):
        whole = fit(small("fastflow"), GOOD, **given)
        with pytest.raises(RuntimeError, match="interrupted"):
            fit(small("fastflow"), GOOD, **given, output=tmp_path / "run", callbacks=[Interrupting()])
        again = fit(small("fastflow"), GOOD, **given, output=tmp_path / "run", resume=True)
        pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
        assert all(torch.equal(x.cpu(), y.cpu()) for x, y in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cs_flow", "memory_flow"])
def test_augmented_region_and_cross_calibration_run_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    region = torch.ones(64, 64).tril() > 0
    found = {"region": region, "augment": ("flip",), "calibration": "cross", "false_alarm_rate": 0.2}
    with emulated_cuda(monkeypatch):
        detector = small(name)
        made = fit(detector, GOOD, **options(detector), **found, device=CUDA, progress=False)
        assert made.predict(stack(TEST)).is_anomalous.device == CUDA


def test_metrics_accept_tensors_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = torch.tensor([0.1, 0.4, 0.3, 0.8]), torch.tensor([0, 0, 1, 1])
    maps = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = (maps > 0.7) & (labels > 0)[:, None, None]

    def values(place) -> list[object]:
        images, pixels, histogram = ImageAccumulator(), PixelAccumulator(), HistogramAccumulator(12)
        images.update(place(scores), place(labels))
        pixels.update(place(maps), place(masks))
        histogram.update(place(maps), place(masks))
        return [images.compute(), pixels.compute(), histogram.compute(0.3), aupro(place(maps), place(masks))]

    with emulated_cuda(monkeypatch):
        assert values(lambda x: x.to(CUDA)) == values(lambda x: x)


def test_synthesis_names_the_device_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated_cuda(monkeypatch):
        image = GOOD[0].image.to(CUDA)
        with pytest.raises(
            ShapeError, match=r"^image must be a float32 tensor \(3, H, W\) on the CPU, but got .* cuda"
        ):
            CutPaste()(image, image, "medium", np.random.default_rng(0))
