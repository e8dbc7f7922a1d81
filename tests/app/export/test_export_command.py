"""`semflow export`, and other commands on its files, without timm; runners without torch."""

import csv
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.export_cases import FORMATS, SIZE, own_detector, recipe_detector
from semflow.app.cli import main
from semflow.data import load_image
from semflow.recipes import save


def blocked(*names: str) -> str:
    """Python that makes imports of these packages fail."""
    return (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {set(names)!r}:\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
    )


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings = {"backbone": "test_byobnet", "backbone.strides": (8,), "couplings.position_channels": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # perturbed, not trained: its maps are at their ceiling
        return save(recipe_detector("sanflow", **settings), folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("good", 2), ("hole", 2)):
        (root / "test" / split).mkdir(parents=True)
        for number in range(count):
            picture = rng.integers(90, 160, (80, 70, 3), dtype=np.uint8)
            if split == "hole":
                picture[20:40, 20:40] = 255
            Image.fromarray(picture).save(root / "test" / split / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def exported(run, photos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.pt2"
    words = ["export", "--model", str(run), "--output", str(path), "--images", str(photos / "test")]
    assert main(words) == 0
    return path


def scores(folder: Path) -> dict[str, float]:
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        return {row["image"]: float(row["score"]) for row in csv.DictReader(file)}


def test_predict_from_a_file_without_timm_equals_the_run(run, photos, exported, tmp_path) -> None:
    words = ["predict", "--input", str(photos / "test"), "--output"]
    assert main([*words, str(tmp_path / "of_run"), "--model", str(run), "--device", "cpu"]) == 0
    arguments = [*words, str(tmp_path / "of_file"), "--model", str(exported)]
    done = python(
        f"{blocked('timm', 'torchvision')}from semflow.app.cli import main\n"
        f"code = main({arguments!r})\n"
        "print(code, sorted({'timm', 'torchvision', 'semflow.recipes.sanflow'} & set(sys.modules) - {'x'}))\n"
        "try:\n    import timm\nexcept ImportError as error:\n    print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "0 [" in done.stdout
    assert "timm is blocked" in done.stdout
    expected, got = scores(tmp_path / "of_run"), scores(tmp_path / "of_file")
    assert expected.keys() == got.keys()
    assert len(expected) == 4
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5)
    ranges = [json.loads((tmp_path / f / "scores.json").read_text())["map_range"] for f in ("of_run", "of_file")]
    assert ranges[0] == pytest.approx(ranges[1])


def test_run_needs_timm(run, photos, tmp_path) -> None:
    arguments = ["predict", "--input", str(photos), "--output", str(tmp_path / "out"), "--model", str(run)]
    done = python(f"{blocked('timm')}from semflow.app.cli import main\nprint(main({arguments!r}))")
    assert "timm" in done.stderr
    assert not (tmp_path / "out").exists()


def test_evaluate_accepts_a_file(photos, exported, run, tmp_path) -> None:
    figures = []
    for name, model in (("run", run), ("file", exported)):
        words = ["evaluate", "--model", str(model), "--data", str(photos), "--json", str(tmp_path / f"{name}.json")]
        assert main(words) == 0
        figures.append(json.loads((tmp_path / f"{name}.json").read_text())["image_auroc"])
    assert figures[0] == figures[1]


@pytest.mark.parametrize("name", FORMATS[1:])
def test_runner_imports_neither_torch_nor_pillow(name, files) -> None:
    done = python(
        f"{blocked('torch', 'timm', 'PIL', 'scipy')}import numpy as np\n"
        "from semflow.app.export import open_runner\n"
        f"runner = open_runner({str(files[name])!r})\n"
        "side = runner.metadata.image_size\n"
        "results = runner(np.zeros((3, 3, side, side), np.uint8))\n"
        "print(results['score'].shape, results['anomaly_map'].shape, results['p_value'].shape)\n"
    )
    assert done.stdout.strip() == f"(3,) (3, {SIZE}, {SIZE}) (3,)", done.stderr


@pytest.mark.parametrize("name", FORMATS[1:])
def test_predict_from_onnx_and_openvino(name, files, photos, tmp_path) -> None:
    words = ["predict", "--input", str(photos / "test"), "--output", str(tmp_path / "out"), "--model", str(files[name])]
    assert main([*words, "--device", "cpu"]) == 0
    found, detector = scores(tmp_path / "out"), own_detector()
    for image, score in found.items():
        expected = detector.predict(load_image(photos / "test" / image, SIZE)[None]).score.item()
        assert score == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len(found) == 4


@pytest.mark.parametrize("name", FORMATS[2:])
def test_other_openvino_weights_are_another_model(name, files, photos, tmp_path, capsys) -> None:
    model = tmp_path / "own.xml"
    for suffix in (".xml", ".bin"):
        model.with_suffix(suffix).write_bytes(files[name].with_suffix(suffix).read_bytes())
    model.write_bytes(model.read_bytes().partition(b"<!-- semflow.sha256")[0])
    words = ["predict", "--input", str(photos / "test"), "--output", str(tmp_path / "out"), "--model", str(model)]
    assert main([*words, "--device", "cpu"]) == 0
    assert main([*words, "--device", "cpu"]) == 0
    assert "already complete" in capsys.readouterr().out
    weights = bytearray(model.with_suffix(".bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    model.with_suffix(".bin").write_bytes(weights)
    assert main([*words, "--device", "cpu"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_export_reports_and_overwrites_nothing(run, exported, tmp_path, capsys) -> None:
    assert main(["export", "--model", str(run), "--output", str(exported)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {exported} must be a new file, but got an existing one")
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "a.pt2"), "--no-check"]) == 0
    output = capsys.readouterr().out
    assert "relative difference" not in output
    assert f"semflow predict --model {tmp_path / 'a.pt2'}" in output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output", "model.pth"], "must end in .pt2, .onnx, .xml"),
        (["--output", "model.pt2", "--format", "onnx"], "must end in .onnx"),
        (["--output", "model.pt2", "--format", "tensorrt"], "tensorrt"),
        (["--output", "none/model.pt2"], "must be a folder, but got none"),
        (["--output", "model.pt2", "--images", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_errors(words, expected, run, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", str(run), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["export", "--output", "new.pt2"], ["calibrate", "--data", "photos"]])
def test_exported_file_is_neither_exported_nor_calibrated(words, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    assert main([words[0], "--model", "model.onnx", *words[1:]]) == 2
    assert capsys.readouterr().err.startswith("error: --model must be a run directory, but got the file model.onnx")


def test_folder_without_a_run_is_rejected(tmp_path, capsys) -> None:
    assert main(["export", "--model", str(tmp_path), "--output", str(tmp_path / "a.pt2")]) == 2
    assert "must contain config.json" in capsys.readouterr().err
