"""benchmarks.speed on small sizes: what it measures is there under its name, and sides that differ are not timed."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from benchmarks.speed import __main__ as speed
from benchmarks.speed import files, flows, metrics, recipes, timing
from benchmarks.speed.flows import Plan, Scale, measure_flows, settings
from benchmarks.speed.metrics import measure_metrics, measure_pixels
from benchmarks.speed.recipes import Case, flops, measure_recipes
from benchmarks.speed.start import measure_start
from benchmarks.speed.timing import Report, Seconds, Variant, best, in_turns, linears, missing, ratio, using_threads
from torch import nn

PLAN = Plan(2, 2, compiled=False)
SMALL = Variant("_small", "small", 2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("FrEIA", reason="the other side of the comparison is an extra: semflow[freia]")
    monkeypatch.setitem(flows.CHANNELS, "small", (8, 16, 8))
    monkeypatch.setattr(flows, "SIZES", (4, 2, 2))
    monkeypatch.setattr(flows, "CODE", 8)


def check_ranges(report: Report) -> None:
    for found in report.ratios.values():
        assert all(0 < a <= b for a, b in pairwise([found["low"], found["median"], found["high"]]))


def test_ratio_is_the_median_over_rounds_for_wall_and_process_time() -> None:
    seconds = {"theirs": [Seconds(2, 3), Seconds(4, 4), Seconds(9, 3)], "ours": [Seconds(1, 1)] * 3}
    assert ratio(seconds, "theirs", "ours") == {"median": 4, "low": 2, "high": 9, "by wall": 3}
    assert ratio(seconds, "theirs", "ours", "wall") == {"median": 3, "low": 3, "high": 4, "by cpu": 4}


def test_best_setting_is_the_fastest_by_the_chosen_clock() -> None:
    seconds = {"a": [Seconds(2, 1)], "b": [Seconds(1, 2)]}
    assert (best(seconds, ["a", "b"]), best(seconds, ["a", "b"], "wall")) == ("b", "a")


def test_interleaved_rounds_alternate_the_first_side() -> None:
    order: list[str] = []
    runs = {name: partial(order.append, name) for name in "abc"}
    found = in_turns(runs, rounds=3, least=0.0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # once before, then a round each
    assert {len(values) for values in found.values()} == {3}


def test_short_runs_are_repeated() -> None:
    calls: list[int] = []
    (one,) = in_turns({"a": lambda: calls.append(0)}, rounds=1, least=0.01)["a"]
    assert len(calls) > 10
    assert one.wall < 0.01


def test_using_threads_restores_the_thread_count() -> None:
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_matrix_product_variants_equal_matmul() -> None:
    x, weight = torch.randn(64, 48), torch.randn(32, 48)
    for linear, prepare in linears().values():
        torch.testing.assert_close(linear(x, prepare(weight, 64)), x @ weight.T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(linear(x.T, weight[:, :1].expand(32, 64)), x.T @ weight[:, :1].expand(32, 64).T)


@pytest.mark.usefixtures("small")
def test_flow_ratios_have_names_and_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "peaks", lambda _, side, *rest: {"eager": [1.0, 0.5], "freia": [2.0, 4.0]}[side])
    report = Report()
    measure_flows(report, SMALL, PLAN, memory=True)
    named = {"sanflow_train_eager", "sanflow_infer_eager", "gemm_fraction_train_eager", "gemm_fraction_infer_eager"}
    named |= {"gemm_bound_train", "gemm_bound_infer", "sanflow_train_memory"}
    assert {f"{name}_small" for name in named} == report.ratios.keys()
    assert report.ratios["sanflow_train_memory_small"]["median"] == 0.25
    check_ranges(report)


@pytest.mark.usefixtures("small")
def test_sides_with_different_outputs_are_not_timed() -> None:
    scale = Scale.make(settings("small")[0], 2, PLAN)
    scale.check()
    with torch.no_grad():
        scale.ours[0].subnet.weight_x += 1
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        scale.check()


def test_missing_peer_is_reported_for_every_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "find_spec", lambda name: None)
    report, variant = Report(), Variant("_batch1", "resnet18", 1)
    measure_flows(report, variant, PLAN)
    speed_anomalib = pytest.importorskip("benchmarks.speed.against_anomalib")
    speed_anomalib.measure_fastflow(report, variant, PLAN)
    speed_anomalib.measure_cflow(report, variant, PLAN)
    assert not report.ratios
    assert {"sanflow_train_eager_batch1", "fastflow_train_batch1", "cflow_infer_batch1"} <= report.skipped.keys()
    assert "-e '.[peers]'" in report.skipped["cflow_infer_batch1"]
    assert missing("FrEIA") is not None


def test_operation_counts_follow_the_formula() -> None:
    case = Case("cflow_ad", "resnet18", 2, 1, size=64, **{"couplings.position_channels": 16})
    expected = 0
    for x in case.maps:
        batch, channels, height, width = x.shape
        locations, hidden = batch * height * width, 2 * (channels // 2 + 16)
        expected += 2 * locations * hidden * (channels // 2 + channels)  # to the hidden units, and to scale and shift
        expected += 2 * (height + width) * 8 * hidden  # the tables of the code
        expected += 2 * locations * channels**2  # the soft permutation
    assert flops(case, "infer") == expected
    # Each product has two in backward, less the gradient that the features do not want; the permutation's matrix is
    # fixed, and the code is not learned: one each.
    assert 2 * expected < flops(case, "train") < 3 * expected


def test_recipe_ratios_have_names_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "Case", partial(Case, size=64))
    monkeypatch.setattr(recipes, "square_products", partial(timing.square_products, 64))
    report = Report()
    measure_recipes(report, Variant("_r", "resnet18", 2), blocks=1, rounds=1)
    kinds = [f"floor_{recipe}_{kind}_r" for recipe in recipes.RECIPES for kind in ("train", "infer")]
    assert report.ratios.keys() == set(kinds)
    assert len(report.rows["recipes"]) == 8  # two of each, and two backbones
    assert all(row["gflop"] > 0 and row["wall_s"] > 0 for row in report.rows["recipes"])


def test_metrics_are_timed_against_installed_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is the peer: semflow[bench]")
    report = Report()
    measure_metrics(report, 5000, 2)
    measure_pixels(report, 2 * 256**2, 1)
    assert {"metrics_vs_sort", "auroc_vs_sort_1e5", "aupro_vs_sort_1e5", "auroc_vs_sklearn_1e5"} <= report.ratios.keys()
    check_ranges(report)
    monkeypatch.setitem(metrics.BYTES, "sklearn", 1e12)
    measure_pixels(report := Report(), 2 * 256**2, 1)
    assert "GiB" in report.skipped["auroc_vs_sklearn_1e5"]


def test_files_to_scores_is_timed_by_part() -> None:
    report = Report()
    with files.png_folder(2, side=64) as folder:
        files.measure_files(report, Variant("_r", "resnet18", 2), folder, blocks=1, rounds=3, repeat=2)
    assert report.ratios.keys() == {"synthesis_not_bottleneck_r"}
    rates = {row["what"]: row["images_per_s"] for row in report.rows["end to end"]}
    assert min(rates.values()) > 0
    assert rates["predict"] < rates["features"]


def test_process_start_is_timed() -> None:
    report = Report()
    measure_start(report, 1)
    memory = {row["what"]: row["peak_mib"] for row in report.rows["start"]}
    assert memory["import semflow"] < 2 * memory["python"]
    assert memory["semflow --help"] < memory["import torch"] / 2
    assert report.ratios["help_vs_torch"]["median"] < 1  # it imports no torch


def test_report_lists_skipped_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "missing", lambda *names: "FrEIA is not installed")
    before = torch.get_num_threads()
    speed.main(["--quick", "--only", "flows", "--no-compile", "--json", str(tmp_path / "speed.json")])
    torch.set_num_threads(before)
    found = json.loads((tmp_path / "speed.json").read_text("utf-8"))
    assert found["ratios"] == {}
    assert found["skipped"]["sanflow_train_eager"] == "FrEIA is not installed"
    assert found["skipped"]["sanflow_train_compiled"] == "FrEIA is not installed"
    assert found["skipped"]["fastflow_train_compiled"] == "--no-compile was given"
    assert {"command", "versions", "machine", "commit", "seconds"} <= found.keys()
    assert found["seed"] == torch.initial_seed() == 0


def test_anomalib_flows_equal_ours_before_timing() -> None:
    pytest.importorskip("anomalib", reason="anomalib is an extra: semflow[peers]")
    from benchmarks.speed.against_anomalib import cflow_pair, check_cflow, check_fastflow, fastflow_pair, images_of

    ours, theirs = fastflow_pair("resnet18", 1)
    images, normalized = images_of(ours, 1)
    check_fastflow(ours, theirs, images, normalized)
    nn.init.constant_(theirs.fast_flow_blocks[0].module_list[0].global_offset, 1.0)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_fastflow(ours, theirs, images, normalized)
    ours, theirs = cflow_pair("resnet18", 1)
    images, normalized = images_of(ours, 1)
    check_cflow(ours, theirs, images, normalized, ours.features(images))
