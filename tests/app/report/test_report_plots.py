"""Plots: areas under curves, counts of histograms, reproducible files."""

import json
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semflow.detectors import Latents
from semflow.errors import ConfigError, DataError, ShapeError
from semflow.metrics import aupro, auroc
from semflow.nn import Statistics

pytest.importorskip("matplotlib", reason="the extra plot installs it")
plots = import_module("semflow.app.report.plots")  # not by importorskip, which would hide errors of this module
metrics = pytest.importorskip("sklearn.metrics")


def area(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


# Few distinct scores, so that most are tied.
KINDS = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: 0 < sum(kind for _, kind in pairs) < len(pairs)
)


@settings(max_examples=60, deadline=None)
@given(KINDS)
def test_area_under_roc_curve_equals_auroc(pairs: list[tuple[int, bool]]) -> None:
    scores, labels = [float(score) for score, _ in pairs], [int(kind) for _, kind in pairs]
    x, y = plots.roc_points(scores, labels)
    assert area(x, y) == pytest.approx(auroc(scores, labels), abs=1e-12)
    theirs = metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(x, theirs[0])
    np.testing.assert_allclose(y, theirs[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.3, 0.77, 1.0]))
def test_area_under_pro_curve_equals_aupro(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((2, 9, 9)) < 0.3
    masks[0, 0, :2] = True, False
    scores = rng.integers(0, 12, masks.shape) + 3.0 * masks
    figure = plots.pro_curve(scores, masks, fpr_limit=limit)
    line = figure.axes[0].get_lines()[-1]
    x, y = line.get_data()
    assert x[0] == y[0] == 0
    assert x[-1] == limit
    assert area(x, y) / limit == pytest.approx(aupro(scores, masks, limit), abs=1e-9)
    assert line.get_label() == f"area {aupro(scores, masks, limit):.3f}"


def test_long_curve_has_few_points_and_exact_area() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(20_000), rng.random(20_000) < 0.5
    line = plots.roc_curve(scores + 0.3 * labels, labels).axes[0].get_lines()[-1]
    assert len(line.get_xdata()) <= 4000
    assert line.get_label() == f"area {auroc(scores + 0.3 * labels, labels):.3f}"


def test_curves_reject_a_single_kind() -> None:
    for labels in ([0, 0], [1, 1]):
        with pytest.raises(ShapeError, match="normal and anomalous"):
            plots.roc_points([0.1, 0.2], labels)
    with pytest.raises(ConfigError, match="fpr_limit"):
        plots.pro_curve(np.zeros((1, 2, 2)), np.eye(2, dtype=bool)[None], fpr_limit=0.0)


def test_histogram_counts_every_score_and_shows_rates() -> None:
    rng = np.random.default_rng(1)
    normal, anomalous = rng.normal(0, 1, 50), rng.normal(3, 1, 20)
    scores, labels = np.concatenate((normal, anomalous)), np.repeat([0, 1], [50, 20])
    axes = plots.score_histogram(scores, labels, threshold=1.5, bins=12).axes[0]
    counts = [sum(bar.get_height() for bar in container) for container in axes.containers]
    assert counts == [50, 20]
    assert axes.get_lines()[0].get_xdata()[0] == 1.5
    label = axes.get_legend().get_texts()[-1].get_text()
    assert f"{np.mean(normal > 1.5):.0%}".rstrip("%") + " % of normal" in label
    assert f"{np.mean(anomalous > 1.5):.0%}".rstrip("%") + " % of anomalous" in label
    assert len(plots.score_histogram(normal, np.zeros(50)).axes[0].containers) == 1
    with pytest.raises(ConfigError, match="bins"):
        plots.score_histogram(scores, labels, bins=0)


def test_training_curves_show_the_log(tmp_path: Path) -> None:
    log = [
        {"epoch": e, "loss": 3 / e, "nll": 2 / e, "bce": 1 / e, "kl": 0.5, "learning_rate": 1e-3, "largest_gradient": e}
        for e in (1, 2, 3)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    figure = plots.training_curves(tmp_path)
    drawn = {line.get_label(): list(line.get_ydata()) for axes in figure.axes for line in axes.get_lines()}
    assert drawn["loss"] == [3.0, 1.5, 1.0]
    assert drawn["KL"] == [0.5] * 3
    assert drawn["largest gradient"] == [1, 2, 3]
    (tmp_path / "log.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="one JSON object per line"):
        plots.training_curves(tmp_path / "log.jsonl")
    with pytest.raises(DataError, match="at least one epoch"):
        plots.training_curves([])


def test_variance_maps_show_the_values() -> None:
    variances = [torch.rand(4, 4), torch.rand(2, 2)]
    figure = plots.variance_maps(torch.rand(3, 16, 16), variances)
    for axes, variance in zip(figure.axes[1:], variances, strict=False):
        np.testing.assert_allclose(axes.get_images()[0].get_array(), variance.numpy())
    with pytest.raises(ShapeError, match="per scale"):
        plots.variance_maps(torch.rand(3, 16, 16), [torch.rand(1, 4, 4)])


def test_base_by_scale_separates_the_locations() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :4, :4] = True
    z = torch.zeros(2, 8, 4, 4)
    z[0, :, 0, 0] = 1.0
    statistics = Statistics(beta=torch.rand(2, 1, 4, 4) + 0.5)
    figure = plots.base_by_scale([Latents(z, torch.zeros(2, 4, 4), "location", statistics)], masks, bins=10)
    normal, anomalous = figure.axes[0].containers
    assert next(bar.get_height() for bar in normal) == pytest.approx(10)  # all in the first of ten bins
    assert [bar.get_height() for bar in anomalous][-1] == pytest.approx(10)
    assert [line.get_xdata()[0] for line in figure.axes[0].get_lines()] == [0.0, 1.0]
    with pytest.raises(ShapeError, match="standard normal"):
        plots.base_by_scale([Latents(z, torch.zeros(2, 4, 4), "location", None)], masks)


def test_saved_figures_are_reproducible(tmp_path: Path) -> None:
    paths = plots.save_figure(plots.roc_curve([0.1, 0.4, 0.3], [0, 0, 1]), tmp_path / "roc.png")
    assert [path.name for path in paths] == ["roc.png", "roc.svg"]
    with Image.open(paths[0]) as picture:
        assert picture.width > 500
    assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")
    again = plots.save_figure(plots.roc_curve([0.1, 0.4, 0.3], [0, 0, 1]), tmp_path / "again.v2")
    assert [path.name for path in again] == ["again.v2.png", "again.v2.svg"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"semflow\[plot\]"):
        plots.roc_curve([0.1, 0.4, 0.3], [0, 0, 1])


def test_plots_leave_pyplot_unchanged() -> None:
    import matplotlib as mpl

    loaded = "matplotlib.pyplot" in sys.modules
    before = {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}  # reading it would choose one
    plots.score_histogram([0.1, 0.4, 0.3], [0, 0, 1])
    assert {name: mpl.rcParams[name] for name in before} == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded
