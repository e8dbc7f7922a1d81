"""The benchmark of fused kernels runs both sides of a small case and summarizes ratios over scales."""

import pytest
from benchmarks.speed.kernels import Case, cases, ratios, sides
from benchmarks.speed.timing import Seconds


@pytest.mark.parametrize("kernel", ["location", "convolution"])
@pytest.mark.parametrize("training", [True, False])
def test_both_sides_run_and_agree(kernel: str, training: bool) -> None:
    runs = sides(Case(kernel, "resnet18", 6, 4, compiled=False), batch=2, training=training)
    assert {"fused", "composition"} <= runs.keys()
    for run in runs.values():
        run()


def test_ratios_sum_scales_within_a_round() -> None:
    scale = {
        "fused": [Seconds(1, 1), Seconds(1, 1), Seconds(1, 1)],
        "composition": [Seconds(1, 1), Seconds(2, 2), Seconds(4, 4)],
    }
    other = {"fused": [Seconds(1, 1)] * 3, "composition": [Seconds(2, 2)] * 3}
    assert ratios([scale, other])["composition"] == {"median": 2.0, "low": 1.5, "high": 3.0}


def test_cases_cover_three_scales_per_backbone_and_kernel() -> None:
    names = [(case.name, case.backbone) for case in cases(["resnet18"], compiled=True)]
    assert names == [(name, "resnet18") for name in ("location", "convolution", "location, compiled") for _ in range(3)]
