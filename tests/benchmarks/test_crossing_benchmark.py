"""Rates of `benchmarks.crossing`, and its results."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import crossing

ROOT = Path(__file__).resolve().parents[2]
REPORT = json.loads((ROOT / "benchmarks" / "results" / "crossing.json").read_text("utf-8"))


@pytest.mark.parametrize("method", crossing.METHODS)
def test_rates_of_exchangeable_images_are_measured(method, monkeypatch) -> None:
    monkeypatch.setattr(crossing, "CHUNK", 3)
    found = crossing.measure(crossing.synthetic, method, 4, 0)
    assert set(found["split"]) == {"0.1"}
    assert set(found["cross"]) == {"0.021", "0.05", "0.1"}
    for kind in ("split", "cross"):
        for rate, about in found[kind].items():
            assert 0 <= about["mean"] <= 0.5
            assert about["exact"] <= float(rate)
    assert found == crossing.measure(crossing.synthetic, method, 4, 0)


def test_flows_trained_together_are_those_trained_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    train, images = torch.randn(2, 12, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    own = torch.ones(3, 12)
    own[0, :4], own[1, 4:8] = 0, 0
    together = crossing.train_together(train, own, images, 0)
    for r in range(2):
        for k in range(3):
            alone = crossing.train_together(
                train[r : r + 1, own[k] > 0], own[k : k + 1, own[k] > 0], images[r : r + 1], 0
            )
            torch.testing.assert_close(alone[0, 0], together[r, k], rtol=1e-3, atol=1e-3)


def test_cross_conformal_rates_are_at_most_nominal_in_practice_and_the_guide_shows_them() -> None:
    assert REPORT["resamplings"] == 1000
    assert set(REPORT["results"]) == {"synthetic", "toothbrush", "screw"}
    for name, methods in REPORT["results"].items():
        assert set(methods) == set(crossing.METHODS)
        for method, found in methods.items():
            for rate, about in found["cross"].items():
                assert about["mean"] <= float(rate) + 3 * about["error"], (name, method)
    assert crossing.table(REPORT["results"]) in (ROOT / "benchmarks" / "results" / "trust.md").read_text("utf-8")
