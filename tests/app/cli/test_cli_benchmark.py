"""`semflow benchmark`: structure and plausible counts of its figures, never the figures themselves."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from helpers.export_cases import PACKAGES, recipe_detector
from semflow.app.cli import benchmark, main
from semflow.app.export import save as save_file
from semflow.recipes import save as save_run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A run directory and its exported file."""
    folder = tmp_path_factory.mktemp("models")
    detector = recipe_detector("patchcore")
    return save_run(detector, folder / "run"), save_file(detector, folder / "half.pt2", precision="float16").path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(root / f"{number}.png")
    return root


@pytest.mark.parametrize(("place", "parts"), [(0, ["backbone", "flows and score"]), (1, ["model"])])
@pytest.mark.parametrize("decoded", [False, True])
def test_figures_of_a_model(place, parts, decoded, models, photos, tmp_path, capsys) -> None:
    file = tmp_path / "speed.json"
    words = ["benchmark", str(models[place]), "--seconds", "0.2", "--json", str(file), "--batch-size", "2"]
    assert main([*words, "--device", "cpu", *(["--images", str(photos)] if decoded else [])]) == 0
    output = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert "95th" in output
    assert f"batches of 2: {found['batches']['images_per_second']:.1f} images per second" in output
    assert (found["format"], found["precision"]) == (("run directory", "float32"), ("torch", "float16"))[place]
    assert (found["image_size"], found["device"]) == (64, "cpu")
    expected = ["decode", *parts] if decoded else parts
    for name in ("one_image", "batches"):
        timing = found[name]
        assert list(timing["parts_median_ms"]) == expected
        assert timing["repeats"] >= 3
        assert 0 < max(timing["parts_median_ms"].values()) <= timing["p95_ms"]
        assert timing["median_ms"] <= timing["p95_ms"]
    assert found["batches"]["batch_size"] == 2
    assert found["batches"]["images_per_second"] == pytest.approx(2000 / found["batches"]["median_ms"])
    assert found["load_seconds"] > 0
    machine = found["machine"]
    assert machine["cpu"]
    assert machine["cpus"] >= 1
    assert machine["threads"] >= 1
    assert {"semflow", "python", "torch"} <= set(found["versions"])


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_other_runtimes_are_named_with_their_version(name, models, tmp_path, capsys) -> None:
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    path = save_file(recipe_detector("padim"), tmp_path / f"a{ {'onnx': '.onnx', 'openvino': '.xml'}[name] }").path
    file = tmp_path / "speed.json"
    assert main(["benchmark", str(path), "--seconds", "0.1", "--json", str(file), "--device", "cpu"]) == 0
    found, runtime = json.loads(file.read_text()), {"onnx": "onnxruntime", "openvino": "openvino"}[name]
    assert f"{runtime} {found['versions'][runtime]}" in " ".join(capsys.readouterr().out.split())
    assert found["format"] == name


def test_a_slow_step_is_repeated_and_a_fast_one_bounded(monkeypatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(next(clock)))
    steps = []
    timing = benchmark.timed(lambda repeat: steps.append(repeat) or {"model": 1.0}, 0.5)
    assert steps == [0, 0, 1, 2]  # one to warm up
    assert len(timing.repeats) == 3
    assert (
        len(benchmark.timed(lambda repeat: {"model": 1.0}, 50.0).repeats) == 52
    )  # the first three without a look at the clock


def test_percentiles_are_of_the_sums() -> None:
    timing = benchmark.Timing([{"decode": x / 1e3, "model": (100 - x) / 1e3} for x in range(101)])
    assert timing.milliseconds(50) == pytest.approx(100)
    assert timing.milliseconds(95, "decode") == pytest.approx(95)
    assert timing.as_dict()["parts_median_ms"] == pytest.approx({"decode": 50, "model": 50})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seconds", "0"], "--seconds must be a positive number, but got 0"),
        (["--seconds", "-1"], "--seconds must be a positive number, but got -1"),
        (["--seconds", "nan"], "--seconds must be a positive number, but got nan"),
        (["--seconds", str(math.inf)], "--seconds must be a positive number, but got inf"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--images", "nowhere"], "nowhere"),
        (["--device", "gpu"], "--device must be auto"),
    ],
)
def test_mistakes_are_one_line_errors(words, expected, models, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", str(models[1]), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_missing_model_is_named(tmp_path, capsys) -> None:
    assert main(["benchmark", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx" in capsys.readouterr().err
