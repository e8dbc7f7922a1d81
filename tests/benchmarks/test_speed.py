"""benchmarks.speed on one small scale: what it measures is there, and sides that differ are not timed."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("FrEIA", reason="the other side of the comparison is an extra: semflow[freia]")

from benchmarks import speed_flows
from benchmarks.coupling import Setting
from benchmarks.speed_flows import Plan, Scale, measure_flows
from benchmarks.speed_metrics import measure_metrics

PLAN = Plan(2, 2, 2, "cpu", (Setting("small", 8, 4, 8),), compiled=False)


def test_ratios_have_their_names_and_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_flows, "peak_memory", lambda side, *_: {"ours": 1.0, "freia": 4.0}[side])
    found = measure_flows(PLAN) | measure_metrics(5000, 2)
    named = {"sanflow_train_eager", "sanflow_infer_eager", "sanflow_train_memory", "metrics_vs_sort"}
    assert named | {"gemm_fraction_train_eager", "gemm_fraction_infer_eager"} == found.keys()
    for value in found.values():
        assert all(0 < a <= b for a, b in pairwise([value["low"], value["median"], value["high"]]))
    assert found["sanflow_train_memory"]["median"] == 0.25


def test_sides_that_differ_are_not_timed() -> None:
    scale = Scale.make(PLAN.settings[0], PLAN)
    scale.check()
    with torch.no_grad():
        scale.ours[0].subnet.weight_x += 1
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        scale.check()
