"""Shares of `benchmarks.colors`, and its results."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import colors

import semflow.training
from semflow.data import Sample
from semflow.training import ImageResult

ROOT = Path(__file__).resolve().parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "colors.json").read_text("utf-8"))["results"]


def test_shares_count_pixels_above_the_first_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def result(label: int, values: list[list[float]], mask: list[list[int]] | None) -> ImageResult:
        marked = None if mask is None else torch.tensor(mask).bool()
        sample = Sample(torch.zeros(3, 2, 2), label, marked, "a.png")
        return ImageResult(sample, 0.0, torch.tensor(values), None, None, None)

    seen = [
        result(0, [[0.0, 1.0], [1.0, 2.0]], None),
        result(0, [[0.0, 0.0], [0.0, 0.0]], None),
        result(1, [[9.0, 9.0], [1.5, 3.0]], [[0, 0], [1, 1]]),
        result(1, [[9.0, 9.0], [1.0, 9.0]], [[0, 0], [1, 0]]),
        result(1, [[9.0, 9.0], [9.0, 9.0]], None),  # a defect that nobody has marked
    ]
    monkeypatch.setattr(semflow.training, "results", lambda *_: seen)
    found = colors.shares(None, None, {"calibration": (1.0, 3.0)})
    assert (found["good_test_images"], found["defective_images"]) == (2, 2)
    assert found["calibration"] == {
        "good_pixels": 0.125, "most_of_one": 0.25, "defect_pixels": 0.6667, "defects": 0.5,
        "level": pytest.approx(1.25 / 3, rel=1e-3), "brightest": 0.5,
    }  # fmt: skip


def test_good_parts_stay_uncolored_and_the_guide_shows_it() -> None:
    assert set(RESULTS) == {"toothbrush", "screw", "brick", "grass", "gravel"}
    for name, found in RESULTS.items():
        assert found["calibration"]["good_pixels"] <= 0.01, name
        assert found["training"]["good_pixels"] <= 0.01, name
        assert found["calibration"]["defect_pixels"] > 10 * found["calibration"]["good_pixels"], name
    assert colors.table(RESULTS) in (ROOT / "benchmarks" / "results" / "trust.md").read_text("utf-8")
