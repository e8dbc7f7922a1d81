"""Files of lower precision: size, cost, metadata, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.export_cases import FORMATS, SIZE, SMALL, own_detector, pictures, recipe_detector
from semflow.app.cli import main
from semflow.app.export import load, save
from semflow.app.export.check import compare
from semflow.app.export.cost import cost_of
from semflow.app.export.graph import DetectorGraph, trace
from semflow.app.export.precision import halve_weights, store_integers
from semflow.app.export.runtime import SUFFIXES
from semflow.data import load_image
from semflow.errors import CheckpointError, ConfigError, ExportError
from semflow.features import round_weights
from semflow.recipes import Backbone, patchcore
from semflow.recipes import save as save_run


def fitted(weight_bits):
    """PatchCore of a residual network with random weights, calibrated, with 500 vectors of 64 channels in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = patchcore(Backbone("test_resnet", "random", weight_bits=weight_bits), 64, coreset=500).eval()
        normal = pictures(64, 12, seed=2, spoiled=0).float() / 255
        made.prepare([normal])
        made.fit_base([normal])
        made.fit_score([normal])
        made.calibrate([pictures(64, 39, seed=3, spoiled=0).float() / 255], 0.1)
    return made


@pytest.fixture(scope="module")
def detector():
    return fitted(32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(pictures(64, 24, seed=5)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / f"{number:02}.png")
    return root


def size_of(path) -> int:
    return sum(file.stat().st_size for file in (path, path.with_suffix(".bin")) if file.is_file())


@pytest.mark.parametrize("name", FORMATS)
def test_float16_stores_weights_in_half_the_space(name, detector, tmp_path) -> None:
    images = pictures(64, 6, seed=6)
    full = save(detector, tmp_path / f"full{SUFFIXES[name]}", check=False)
    half = save(detector, tmp_path / f"half{SUFFIXES[name]}", images=images, precision="float16")
    large = sum(x.numel() for x in detector.state_dict().values() if x.dtype == torch.float32 and x.numel() >= 2**12)
    assert size_of(full.path) - size_of(half.path) == pytest.approx(2 * large, rel=0.1)
    assert (full.cost, half.differences) == (None, {})
    assert 0 < half.cost.score_mean <= half.cost.score_largest < 0.05
    assert 0 < half.cost.map_mean < half.cost.map_largest < 0.1
    assert (half.cost.images, half.cost.decisions) == (6, 0)
    expected, exported = detector.predict(images.float() / 255), load(half.path)
    got = exported.predict(images)
    assert got.score.dtype == torch.float32
    torch.testing.assert_close(got.score, expected.score, rtol=1e-2, atol=0)
    assert not torch.equal(got.score, expected.score)
    assert torch.equal(got.is_anomalous, expected.is_anomalous)
    assert expected.is_anomalous.tolist() == [False] * 3 + [True] * 3
    assert (exported.metadata.precision, load(full.path).metadata.precision) == ("float16", "float32")
    assert exported.metadata.calibration == load(full.path).metadata.calibration
    assert exported.false_alarm_rate == pytest.approx(0.1)


@pytest.mark.parametrize("name", FORMATS)
def test_int8_stores_the_backbone_in_a_quarter_without_loss(name, tmp_path) -> None:
    detector, images = fitted(8), pictures(64, 6, seed=6)
    half = save(detector, tmp_path / f"half{SUFFIXES[name]}", images=images, precision="float16")
    small = save(detector, tmp_path / f"small{SUFFIXES[name]}", images=images, precision="int8")
    layers = [x for x in detector.features.modules() if isinstance(x, torch.nn.Conv2d)]
    weights = sum(x.weight.numel() for x in layers if x.weight.numel() >= 2**12)
    assert size_of(half.path) - size_of(small.path) > 0.8 * weights - 2**15  # scales and more of the graph
    assert small.cost.score_largest < half.cost.score_largest + 1e-3
    assert (small.cost.decisions, load(small.path).metadata.precision) == (0, "int8")
    expected, got = detector.predict(images.float() / 255), load(small.path).predict(images)
    torch.testing.assert_close(got.score, expected.score, rtol=1e-3, atol=0)
    assert not any(hasattr(x, "parametrizations") for x in layers)  # the detector is not changed


class Mixer(torch.nn.Module):
    """Patches of 8 pixels and a linear layer of each, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.layer = torch.nn.Conv2d(3, 64, 8, stride=8), torch.nn.Linear(64, 64)

    def forward(self, x):
        x = self.patches(x).movedim(1, 3)
        return (x + self.layer(x.relu())).movedim(3, 1)


@pytest.mark.parametrize("name", FORMATS)
def test_int8_computes_linear_layers_in_float32(name, tmp_path) -> None:
    """OpenVINO would round what is multiplied by 8-bit weights, which changes maps by half a percent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Mixer()
    round_weights(network)
    detector, images = patchcore(network, 64, coreset=20).eval(), pictures(64, 6, seed=6)
    normal = pictures(64, 12, seed=2, spoiled=0).float() / 255
    detector.prepare([normal])
    detector.fit_base([normal])
    detector.fit_score([normal])
    small = save(detector, tmp_path / f"small{SUFFIXES[name]}", images=images, precision="int8")
    expected, got = detector.predict(images.float() / 255), load(small.path).predict(images)
    torch.testing.assert_close(got.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)


def test_scales_of_8_bit_weights_keep_their_precision() -> None:
    layer = torch.nn.Linear(64, 4096).requires_grad_(False)
    round_weights(layer)
    store_integers(layer)
    program = torch.export.export(layer, (torch.zeros(2, 64),))
    halve_weights(program)
    types = {name.rpartition(".")[2]: x.dtype for name, x in program.state_dict.items()}
    assert types == {"bias": torch.float16, "original0": torch.int8, "original1": torch.float32}


def test_commands_fit_and_export_with_8_bit_weights(folder, tmp_path, capsys) -> None:
    run, file = tmp_path / "run", tmp_path / "small.pt2"
    words = ["--backbone", "test_resnet", "--weights", "random", "--image-size", "64", "--set", "coreset", "50"]
    given = ["fit", "--recipe", "patchcore", "--data", str(folder), "--output", str(run), "--device", "cpu"]
    assert main([*given, *words, "--set", "backbone.weight_bits", "8"]) == 0
    assert main(["export", "--model", str(run), "--output", str(file), "--precision", "int8"]) == 0
    assert "int8: differences in standard deviations" in capsys.readouterr().out


def test_int8_is_refused_for_other_weights(detector, tmp_path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^backbone must have weights that 8 bits can store for precision int8, .*weight_bits 8, call",
    ):
        save(detector, tmp_path / "a.pt2", precision="int8")
    assert not list(tmp_path.iterdir())


def test_bf16_is_computed_by_openvino_and_refused_elsewhere(detector, tmp_path, capsys) -> None:
    openvino = pytest.importorskip("openvino")
    images = pictures(64, 6, seed=6)
    exported = save(detector, tmp_path / "low.xml", images=images, precision="bf16", check=False)
    opened = load(exported.path)
    assert (exported.metadata.precision, opened.metadata.precision) == ("bf16", "bf16")
    expected, got = detector.predict(images.float() / 255), opened.predict(images)
    torch.testing.assert_close(got.score, expected.score, rtol=0.05, atol=0)
    can = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert torch.allclose(got.score, expected.score, rtol=1e-6, atol=0) != can
    for name in ("low.onnx", "low.pt2"):
        with pytest.raises(
            ConfigError, match=r"^precision must be float32, float16 or int8 for format \w+, but got bf16; use"
        ):
            save(detector, tmp_path / name, precision="bf16")


def test_bf16_that_changes_scores_is_refused(detector, tmp_path, monkeypatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("semflow.app.export.cost.LARGEST", -1.0)
    with pytest.raises(ExportError, match=r"for precision bf16, but got .* and \d of 6 decisions changed; use float32"):
        save(detector, tmp_path / "low.xml", images=pictures(64, 6, seed=6), precision="bf16")
    assert not (tmp_path / "low.xml").exists()


def test_weights_that_float16_cannot_hold_keep_their_precision() -> None:
    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in (("fits", 0.1), ("large", 1e6), ("tiny", 1e-9), ("empty", 0.0)):
                self.register_buffer(name, torch.full((2**12,), value))
            self.register_buffer("short", torch.full((8,), 0.1))

        def forward(self, x):
            return x * self.fits + x * self.large + x * self.tiny + x * self.empty, x[:8] * self.short

    program = torch.export.export(Product(), (torch.ones(2**12),))
    before = program.module()(torch.ones(2**12))
    halve_weights(program)
    halved = {name for name, x in program.state_dict.items() if x.dtype == torch.float16}
    assert halved == {"fits", "empty"}
    for a, b in zip(program.module()(torch.ones(2**12)), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0)


def test_calibration_is_not_rounded() -> None:
    detector = own_detector()
    scores = torch.linspace(1, 2, 5000)
    detector.calibration.fit(scores, scores)
    program = trace(DetectorGraph(detector.eval().requires_grad_(False)))
    halve_weights(program)
    kept = {x.dtype for name, x in program.state_dict.items() if "calibration" in name and x.is_floating_point()}
    assert kept == {torch.float32}


def changed(graph, change):
    def run(images):
        results = dict(zip(graph.outputs, (x.numpy().copy() for x in graph(torch.from_numpy(images))), strict=True))
        change(results)
        return results

    return run


def test_cost_counts_in_deviations_of_normal_scores() -> None:
    graph = DetectorGraph(own_detector().eval())
    images = pictures(SIZE, 11, seed=6)  # two alone, and two batches
    spread = graph.detector.calibration.scores.double().std().item()

    def change(results) -> None:
        results["score"][0] += 0.08 * spread
        results["is_anomalous"][0] ^= True

    cost = cost_of(graph, changed(graph, change), images)
    assert cost.score_largest == pytest.approx(0.08, rel=1e-3)
    assert cost.score_mean == pytest.approx(4 * 0.08 / 11, rel=1e-3)
    assert (cost.images, cost.decisions, cost.map_largest) == (11, 4, 0)


def test_nonsense_is_refused() -> None:
    graph = DetectorGraph(own_detector().eval())
    images = pictures(SIZE, 6, seed=6)
    spread = graph.detector.calibration.scores.std().item()
    others = {
        "not a number": lambda r: r["score"].__setitem__(0, np.nan),
        "zero": lambda r: r["score"].fill(0),
        "reversed": lambda r: r["score"].__imul__(-1),
        "shifted": lambda r: r["score"].__iadd__(40 * spread),
    }
    for change in others.values():
        with pytest.raises(ExportError, match="standard deviations of normal scores for precision float16, but"):
            cost_of(graph, changed(graph, change), images)
    with pytest.raises(ExportError, match=r"^anomaly_map of the exported model must be \(6, 32, 32\)"):
        cost_of(graph, changed(graph, lambda r: r.__setitem__("anomaly_map", r["anomaly_map"][:, 1:])), images)


def test_cost_without_calibration_is_relative_to_the_images() -> None:
    graph = DetectorGraph(own_detector(calibrated=False).eval())
    cost = cost_of(graph, changed(graph, lambda r: None), pictures(SIZE, 1, seed=6))
    assert cost == (1, 0, 0, 0, 0, None)


def test_commands_take_files_of_lower_precision(detector, folder, tmp_path, capsys) -> None:
    run, file, out = save_run(detector, tmp_path / "run"), tmp_path / "half.pt2", tmp_path / "out"
    words = ["export", "--model", str(run), "--output", str(file), "--precision", "float16", "--images", str(folder)]
    assert main(words) == 0
    assert "decisions change for none of 24 images" in capsys.readouterr().out
    assert main(["predict", "--model", str(file), "--input", str(folder), "--output", str(out), "--device", "cpu"]) == 0
    rows = json.loads((out / "scores.json").read_text())["images"]
    found = [row["score"] for row in rows]
    images = torch.stack([load_image(folder / row["image"], 64) for row in rows])
    expected = detector.predict(images)
    np.testing.assert_allclose(found, expected.score, rtol=1e-2)
    assert [row["is_anomalous"] for row in rows] == expected.is_anomalous.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_recipe_in_lower_precision(name, tmp_path) -> None:
    detector, images = recipe_detector(name), pictures(64, 16, seed=9)
    cost = save(detector, tmp_path / "half.pt2", precision="float16", images=images).cost
    assert 0 <= cost.score_mean < 0.05
    assert cost.decisions == 0


def test_other_precisions_are_refused(tmp_path, capsys) -> None:
    with pytest.raises(ConfigError, match="precision must be one of float32, float16, bf16, int8, but got 'int4'"):
        save(own_detector(), tmp_path / "a.pt2", precision="int4")
    assert main(["export", "--model", "none", "--output", str(tmp_path / "a.pt2"), "--precision", "half"]) == 2
    assert "half" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_broken_file_is_not_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("semflow.app.export.cost.LARGEST", -1.0)
    with pytest.raises(ExportError, match="use float32, or disable the check and measure"):
        save(own_detector(), tmp_path / "a.pt2", precision="float16")
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError):
        load(tmp_path / "a.pt2")


def test_a_pixel_at_the_threshold_may_be_on_either_side() -> None:
    """The check compares decisions with those that follow from the file's own scores and maps."""
    graph = DetectorGraph(own_detector().eval())
    images = pictures(SIZE, 3, seed=0)
    at = graph(images)[1][0, 3, 3].item()
    graph.detector.calibration.thresholds[1] = at
    step = 2e-6 * max(1.0, abs(at))

    def run(raised: float, above: bool) -> dict[str, float]:
        def change(results) -> None:
            results["anomaly_map"][0, 3, 3] += raised
            results["mask"][0, 3, 3] = above

        return compare(graph, changed(graph, change), images)

    assert run(step, True)["mask"] == run(-step, False)["mask"] == 0
    for raised, above in ((step, False), (-step, True)):
        with pytest.raises(ExportError, match=r"^mask of the exported model must differ"):
            run(raised, above)
