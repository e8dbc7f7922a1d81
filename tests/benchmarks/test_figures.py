"""The qualitative figures of tiny runs."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.figures.__main__ import choose, main
from benchmarks.figures.compute import Histogram, histograms, mean_histograms, views
from PIL import Image

from semflow import Detector, fit
from semflow.data import MVTecAD
from semflow.functional import mask_to_grid
from semflow.recipes import ABLATIONS, build, load

SMALL = {
    "backbone": "resnet18",
    "backbone.weights": "random",
    "backbone.strides": (8, 16),
    "image_size": 64,
    "couplings.blocks": 1,
    "couplings.position_channels": 16,
}


def train(mvtec: Path, run: Path, model: str) -> Path:
    detector = build("sanflow", {**SMALL, **ABLATIONS[model]})
    data = MVTecAD(mvtec, "train", 64, category="screw")
    fit(detector, data, epochs=1, output=run, progress=False)
    return run


@pytest.fixture(scope="module")
def runs(mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: train(mvtec, folder / name, name) for name in ("3c", "1a")}


@pytest.fixture
def test_set(mvtec: Path) -> MVTecAD:
    return MVTecAD(mvtec, "test", 64, category="screw")


@pytest.fixture
def detector(runs: dict[str, Path]) -> Detector:
    return load(runs["3c"])


def test_views_match_the_detector(detector: Detector, test_set: MVTecAD) -> None:
    samples = [test_set[k] for k in (3, 4)]
    seen = views(detector, samples)
    images = torch.stack([s.image for s in samples])
    prediction = detector.predict(images)
    latents = detector.encode(images)
    up = lambda x: torch.nn.functional.interpolate(x[:, None], size=(64, 64), mode="bilinear")[:, 0]  # noqa: E731
    normal, posterior = [], []
    for z, log_det, _, statistics in latents:
        base, c = detector.base, z.shape[1]
        everywhere = torch.ones(2, *z.shape[2:])
        log_n, log_a = base.log_prob(z, statistics), base.log_prob(z, statistics, everywhere)
        normal.append(up(-(log_n + log_det) / c))
        # s(z) of Eq. 8 from the two densities; `views` uses the log-odds
        posterior.append(up(1 - torch.softmax(torch.stack([log_n, log_a]) / c, 0)[0]))
    for k, view in enumerate(seen):
        np.testing.assert_array_equal(view.score, prediction.anomaly_map[k].numpy())
        np.testing.assert_allclose(view.normal, torch.stack(normal).mean(0)[k].detach(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(view.posterior, torch.stack(posterior).mean(0)[k].detach(), atol=1e-4)
        assert [v.shape for v in view.variances] == [(8, 8), (4, 4)]
        np.testing.assert_array_equal(view.image, samples[k].image.permute(1, 2, 0).numpy())
        assert view.means[0][0].shape == (8, 8)
    # A view does not depend on the other images.
    np.testing.assert_allclose(views(detector, samples[:1])[0].normal, seen[0].normal, rtol=1e-4, atol=1e-4)


def test_histograms_count_all_locations_except_borders(detector: Detector, test_set: MVTecAD) -> None:
    found = histograms(detector, test_set, bins=20)
    masks = torch.stack([sample.anomaly_mask for sample in (test_set[k] for k in range(len(test_set)))])
    for histogram, side in zip(found, (8, 4), strict=True):
        anomalous = mask_to_grid(masks, (side, side), detector.provenance.training.mask_resize) > 0
        around = torch.nn.functional.max_pool2d(anomalous[:, None].float(), 3, 1, 1)[:, 0] > 0
        assert histogram.anomalous.sum() == anomalous.sum()
        assert histogram.normal.sum() == (~around).sum()
        assert 0 <= histogram.overlap <= 1


def test_mean_histograms_count_the_predicted_means(
    detector: Detector, test_set: MVTecAD, runs: dict[str, Path]
) -> None:
    seen = views(detector, [test_set[k] for k in range(len(test_set))])
    for scale, histogram in enumerate(mean_histograms(detector, test_set, bins=10)):
        for k, counts in enumerate((histogram.normal, histogram.anomalous)):
            values = np.concatenate([view.means[scale][k].ravel() for view in seen]).astype(np.float64)
            truth = np.histogram(values.clip(histogram.edges[0], histogram.edges[-1]), histogram.edges)[0]
            assert abs(counts - truth).sum() <= 2  # rounding may move a value at an edge
    assert mean_histograms(load(runs["1a"]), test_set) == []


def test_overlap_is_the_shared_area() -> None:
    edges, ones = np.arange(4.0), np.array([1, 1, 0])
    assert Histogram(0, edges, ones, 5 * ones).overlap == pytest.approx(1)
    assert Histogram(0, edges, ones, np.array([0, 0, 3])).overlap == 0
    assert Histogram(0, edges, ones, np.array([0, 4, 4])).overlap == pytest.approx(0.5)


def test_choose_takes_each_kind_of_defect_in_turn() -> None:
    labels, kinds = [0, 1, 1, 1, 1, 1], ["good", "cut", "cut", "hole", "cut", "hole"]
    assert choose(labels, kinds, 3) == [1, 3, 2]
    assert choose(labels, kinds, 9) == [1, 3, 2, 5, 4]
    assert choose([0], ["good"], 2) == []


def test_command_draws_the_figures_of_the_model(
    runs: dict[str, Path], mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    data = str(mvtec / "screw")
    words = ["--model", str(runs["3c"]), "--compare", str(runs["1a"]), "--data", data, "--images", "2"]
    assert main([*words, "--output", str(tmp_path / "3c")]) == 0
    names = ["comparison", "latent_means", "localization", "posterior_test", "posterior_train"]
    names += ["predicted_mean_histograms", "predicted_means", "two_bases", "variances"]
    assert sorted(p.stem for p in (tmp_path / "3c").glob("*.png")) == names
    for name in names:
        with Image.open(tmp_path / "3c" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 30, name
        assert ElementTree.parse(tmp_path / "3c" / f"{name}.svg").getroot().tag.endswith("svg")
    record = json.loads((tmp_path / "3c" / "figures.json").read_text())
    assert len(record["images"]) == 2
    assert record["command"].startswith("python -m benchmarks.figures --model")
    capsys.readouterr()
    words = ["--model", str(runs["1a"]), "--data", data, "--images", "2", "--output", str(tmp_path / "1a")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "not drawn: two_bases, posterior_test, posterior_train: the model has no anomalous mean" in out
    assert sorted(p.stem for p in (tmp_path / "1a").glob("*.svg")) == ["latent_means", "localization"]
    assert main(["--model", data, "--data", data, "--output", str(tmp_path / "none")]) == 2
    assert "must contain config.json" in capsys.readouterr().err
