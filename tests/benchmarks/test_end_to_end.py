"""Whole processes of `benchmarks.speed.end_to_end` on small images, without anomalib."""

import json
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from benchmarks.speed import coreset, end_to_end, whole
from benchmarks.speed.end_to_end import QUICK, Results, Row, available, measure, rows, summary
from benchmarks.speed.timing import square_products
from benchmarks.speed.whole import Bench, Sample, Sizes

FAST, SLOW = {"cpu": 1.0, "wall": 1.0, "mib": 100.0}, {"cpu": 4.0, "wall": 3.0, "mib": 900.0}


def run(tmp_path: Path, *words: str) -> Any:
    """Run the command with a small backbone; return what it wrote."""
    file, only = tmp_path / "end_to_end.json", ["--backbones", "test_efficientnet", "--methods", "patchcore"]
    end_to_end.main([*words, "--quick", "--peer", "none", *only, "--json", str(file), "--work", str(tmp_path / "work")])
    return json.loads(file.read_text("utf-8"))


def test_whole_processes_are_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(tmp_path, "--only", "predict", "parts")
    name = "predict patchcore test_efficientnet 64 px"
    (sample,) = found["rows"][name]["samples"]["semflow"]
    assert sample.keys() == {"cpu", "wall", "mib"}
    assert min(sample.values()) > 0
    assert found["failed"] == {f"{name}, anomalib": "not installed"}
    assert {"command", "versions", "machine", "commit", "seed", "load_before"} <= found.keys()
    parts = found["more"]["parts patchcore test_efficientnet 64 px"]
    assert parts["shares"].keys() == {"start", "decoding", "features", "flow", "score", "writing"}
    assert sum(parts["shares"].values()) == pytest.approx(1, abs=0.01)
    monkeypatch.setattr(Bench, "semflow", lambda *_: pytest.fail("nothing is missing"))
    assert run(tmp_path, "--only", "predict", "parts")["rows"] == found["rows"]


def test_samples_of_other_sizes_are_not_mixed(tmp_path: Path) -> None:
    same = {"commit": "a", "sizes": [1]}
    Results(tmp_path / "a.json", same, list(same)).write()
    Results(tmp_path / "a.json", same, list(same))
    with pytest.raises(SystemExit, match="has another sizes"):
        Results(tmp_path / "a.json", same | {"sizes": [2]}, list(same))


def test_every_section_has_rows_for_both_sides(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Sizes(), sys.executable, 0)
    found = list(rows(bench, ["a", "b"], ["patchcore", "padim"]))
    assert len({row.name for row in found}) == len(found) == 2 * (2 + 2 + 2 + 4 + 2) + 3
    assert {row.section for row in found} == {"fit", "predict", "exported", "first", "memory"}
    assert {row.sides for row in found if row.section == "memory"} == {("semflow",)}
    assert not list(tmp_path.iterdir())  # images and models are made when they are needed


def test_anomalib_fits_with_the_same_batches_whatever_predicts_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr(Bench, "anomalib", lambda _, action, job: jobs.append(job) or Sample(1.0, 1.0))
    bench = Bench(tmp_path, QUICK, sys.executable, 0)
    (tmp_path / "padim test_efficientnet.ckpt").touch()
    for bench.batch, bench.workers in whole.BATCHES:
        bench.fit("anomalib", "padim", "test_efficientnet")
    assert [(job["batch"], job["workers"]) for job in jobs] == [whole.BATCHES[1]] * len(whole.BATCHES)


def test_every_row_runs_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def once(arguments: list[str], *_: Any) -> tuple[float, float, float]:
        ran.append(arguments[1:3])
        words = dict(pairwise(arguments))
        job = json.loads(arguments[2]) if arguments[1] in ("fit", "predict", "export", "one_at_a_time") else {}
        if "fit" in arguments or "export" in arguments:  # of either side
            made = Path(words.get("--output") or job["model" if arguments[1] == "fit" else "output"])
            made.touch()
        if job.get("json"):
            Path(job["json"]).write_text(json.dumps({"times": [[3.0, 2.0], [3.0, 2.0]]}))
        return 1.0, 2.0, 3.0

    monkeypatch.setattr(whole, "once", once)
    bench, results = Bench(tmp_path, QUICK, sys.executable, 0), Results(None, {}, ())
    measure(results, list(rows(bench, ["test_efficientnet"], ["patchcore", "fastflow"])), 1, float("inf"))
    assert not results.failed
    assert results.samples["exported fastflow test_efficientnet 64 px"]["anomalib"] == [{"cpu": 2.0, "wall": 3.0}]
    assert {len(found) for name, found in results.samples.items() if name.startswith("exported")} == {2, 3}
    assert {len(found) for name, found in results.samples.items() if name.startswith(("fit", "predict", "first"))} == {
        2
    }


def test_rounds_alternate_sides_and_add_what_is_missing(tmp_path: Path) -> None:
    results, order = Results(None, {}, ()), list[str]()

    def sample(side: str) -> Sample:
        order.append(side)
        return Sample(1.0, 2.0)

    measure(results, [Row("fit", "fit a", sample)], 2, until=float("inf"))
    assert order == ["semflow", "anomalib", "anomalib", "semflow"]
    measure(results, [Row("fit", "fit a", sample)], 3, until=float("inf"))
    assert order[4:] == ["semflow", "anomalib"]
    measure(results, [Row("fit", "fit a", sample)], 4, until=0.0)
    assert len(order) == 6


def test_summary_has_ratios_by_both_clocks_and_says_whether_the_target_is_met() -> None:
    found = summary("fit patchcore resnet18", {"semflow": [FAST, FAST], "anomalib": [SLOW, SLOW]})
    assert found["wall ratio"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert found["target"] == {"at least": 4.0, "met": {"wall": False, "cpu": True}}
    assert summary("memory padim", {"semflow": [SLOW]})["target"] == {"at most": 1536.0, "of": "mib", "met": True}
    exported = {"semflow": [SLOW], "anomalib": [FAST], "anomalib float32": [SLOW]}
    found = summary("exported padim resnet18 256 px", exported)
    assert (found["cpu ratio"]["median"], found["cpu ratio float32"]["median"]) == (0.25, 1.0)
    assert "target" not in summary("first resnet18", {"semflow": [FAST]})


def test_failed_process_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUICK, sys.executable, 0)
    results = Results(tmp_path / "a.json", {}, ())
    broken = Row("fit", "fit a", lambda side: bench.semflow("fit", "--recipe", "none"), ("semflow",))
    measure(results, [broken, Row("fit", "fit b", lambda side: Sample(1, 1), ("semflow",))], 2, float("inf"))
    assert "--recipe" in results.failed["fit a, semflow"]
    assert len(results.samples["fit b"]["semflow"]) == 2


def test_sides_without_packages_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "find_spec", lambda name: None)
    bench, results = Bench(tmp_path, QUICK, "none", 0), Results(None, {}, ())
    left = available(results, list(rows(bench, ["a"], ["padim"])), bench)
    assert {row.sides for row in left} == {("semflow",)}
    assert not any(row.name.endswith("exported") or row.section == "exported" for row in left)
    assert results.failed["exported padim a 64 px, semflow"] == "not installed"


def test_large_coreset_is_timed_against_its_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "square_products", partial(square_products, 64))
    found = coreset.measure_large(300, 8, selections=4, queries=5)
    assert (found["vectors"], found["channels"]) == (300, 8)
    assert 0 < found["nearest"]["floor"] < 1
