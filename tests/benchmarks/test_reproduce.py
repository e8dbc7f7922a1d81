"""The command: what it lists, makes, keeps, compares and writes; cells are made by a stand-in without training."""

import json
import re
import shutil
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.paper import load
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.cells import Job
from benchmarks.reproduce.options import parse
from benchmarks.reproduce.tables import TABLES, table
from benchmarks.shared.runner import Outcome
from benchmarks.shared.store import CellStore

SMALL = ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--epochs", "3"]
CATEGORIES = ["screw", "toothbrush"]


def figure(cell: Any, metric: str) -> float:
    """A figure in [0, 1] that depends on everything that a cell is."""
    arguments = cell.arguments
    level = 0.5 + 0.05 * CATEGORIES.index(cell.data.category) + 0.01 * cell.seed**2
    level += 0.1 * bool(arguments.get("synthesis", True)) + 0.02 * (arguments.get("variance") == "predicted")
    return level + {"image_auroc": 0.0, "pixel_auroc": 0.1, "aupro": 0.2}[metric]


def pretend(job: Job) -> dict[str, Any]:
    metrics = {metric: figure(job.cell, metric) for metric in ("image_auroc", "pixel_auroc", "aupro")}
    result = {
        "metrics": metrics,
        "epochs": 3,
        "steps": 6,
        "train_images": 6,
        "test_images": 6,
        "train_seconds": 1.0,
        "train_cpu_seconds": 1.5,
        "evaluate_seconds": 0.5,
        "trained_parameters": 10,
        "peak_memory_mb": 100,
        "device": "cpu",
    }
    if job.cell.evaluations > 1:
        result["best"] = {m: {"value": v + 0.01, "epoch": 2} for m, v in metrics.items()}
    CellStore(job.store).put(job.cell.config(), result, {"command": " ".join(job.command)})
    return result


def here(
    jobs: Sequence[Job], work: Callable[[Job], Any], at_a_time: int, threads: int | None
) -> Generator[Outcome[Job], None, None]:
    """`run_all` without processes."""
    for job in jobs:
        try:
            yield Outcome(job, 1.0, work(job))
        except ValueError as error:
            yield Outcome(job, 1.0, None, f"ValueError: {error}", "the traceback")


class Counting:
    """`pretend`, counting, and raising at the calls that are named."""

    def __init__(self, **errors: type[BaseException]) -> None:
        self.errors = {int(call[1:]): error for call, error in errors.items()}
        self.calls = 0

    def __call__(self, job: Job) -> Any:
        self.calls += 1
        if self.calls in self.errors:
            raise self.errors[self.calls]("out of order")
        return pretend(job)


def reproduce_here(words: Sequence[str], work: Callable[[Job], Any] = pretend) -> int:
    return reproduce.run(parse(words), ("python", *words), work, here)


def words_for(name: str, data: Path, output: Path, *more: str) -> list[str]:
    return [name, "--data", str(data), "--output", str(output), *SMALL, *more]


def test_every_row_of_every_table_is_in_the_paper_or_a_control() -> None:
    for name in TABLES:
        found = table(name)
        names = [row.name for row in found.rows]
        assert len(set(names)) == len(names)
        for row in found.rows:
            assert bool(row.paper) != row.control, row.name
            assert not row.against or row.against in names
            for paper, method in row.paper:
                printed = [p for p in load(paper).rows if (p.method, p.dataset) == (method, found.dataset)]
                assert printed, (paper, method)
                assert any(p.backbone in (found.paper_backbone, "not stated") for p in printed)


def test_the_papers_rows_are_all_there() -> None:
    for name in ("table4", "table5", "table6", "margin", "tableS2", "tableS3", "tableS4", "tableS5", "tableS6"):
        printed = {row.method for row in load(name).rows if row.dataset == table(name).dataset}
        assert printed <= {row.name for row in table(name).rows}


def test_comparisons_with_statistics_prediction_have_their_controls() -> None:
    for name in ("table4", "table5", "table6"):
        rows = {row.name: row for row in table(name).rows}
        assert rows["variance 1"].arguments == {"variance": "fixed", "mode": 1.0}
        assert rows["learned"].arguments == {"variance": "learned"}
    for flow in ("CFLOW-AD", "FastFlow"):
        rows = {row.name: row for row in table("tableS5").rows}
        assert rows[flow].arguments == {"statistics": False}
        assert rows[f"{flow} learned"].arguments["variance"] == "learned"
        assert rows[f"{flow}+SP"].arguments["variance"] == "predicted"


def test_list_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in TABLES)
    assert reproduce.main(["table6", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(row.name in out for row in table("table6").rows)


def test_list_and_dry_run_say_what_is_done(mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_for("table5", mvtec, tmp_path, "--seeds", "0", "--categories", "screw", "--no-chart")
    assert reproduce_here([*words, "--rows", "2a"]) == 0
    work = Counting()
    capsys.readouterr()
    assert reproduce_here([*words, "--list"], work) == 0
    out = capsys.readouterr().out
    assert "7 cells, 1 of them done" in out
    assert re.search(r"done +2a +screw, seed 0", out)
    assert re.search(r"- +SANFlow +screw, seed 0", out)
    small = ["--set", "blocks=1", "position_channels=16", "strides=8,16"]
    assert reproduce_here([*words, "--rows", "2a", "SANFlow", "--dry-run", *small], work) == 0
    out = capsys.readouterr().out
    assert "2 cells, 0 of them done" in out  # --set makes other cells
    assert re.search(r"about \d+ s with 1 at a time", out)
    assert work.calls == 0


def test_the_table_is_what_the_cells_say(mvtec: Path, tmp_path: Path) -> None:
    assert reproduce_here(words_for("table5", mvtec, tmp_path, "--seeds", "0", "1", "2")) == 0
    summary = json.loads((tmp_path / "table5.json").read_text())
    rows = {row["row"]: row["metrics"]["image_auroc"] for row in summary["rows"]}
    # By hand: the mean over both categories is 0.525 + 0.01 seed^2, + 0.1 with synthesis, + 0.02 where predicted.
    seeds = [52.5, 53.5, 56.5]
    ours = rows["SANFlow"]["ours"]
    assert ours["mean"] == pytest.approx(statistics.fmean(seeds) + 12)
    assert ours["std"] == pytest.approx(statistics.stdev(seeds))
    # Table S3 prints 94.0 and 96.7 for SANFlow, 93.2 and 98.0 for 2a.
    assert rows["SANFlow"]["paper"] == {"all": 98.7, "here": pytest.approx(95.35)}
    assert rows["SANFlow"]["difference"] == pytest.approx(statistics.fmean(seeds) + 12 - 95.35)
    against = rows["2a"]["against"]
    assert against["row"] == "SANFlow"
    assert against["paper"] == pytest.approx(95.6 - 95.35)
    # Seeds differ by 4 points, but not in the difference between rows, which is taken seed by seed.
    assert (against["ours"]["mean"], against["ours"]["std"]) == (pytest.approx(-10), pytest.approx(0, abs=1e-9))
    assert rows["learned, no synthesis"]["against"]["row"] == "2a"
    assert rows["learned"]["paper"] == {"all": None, "here": None}
    assert rows["SANFlow"]["categories"]["toothbrush"]["paper"] == 96.7
    assert rows["SANFlow"]["best_on_test"] is None
    assert summary["done"] == summary["planned"] == 42
    assert len(summary["cells"]) == 42
    assert summary["provenance"]["command"].startswith("python table5 --data")
    text = (tmp_path / "table5.md").read_text()
    assert "compare the differences between rows" in text
    assert "| SANFlow | the whole method | 98.70 | 95.35 | 66.17 ± 2.08 | -29.18 |" in text
    assert "Unfinished" not in text
    assert "best on test" not in text


def test_best_on_test_is_a_column_of_its_own(mvtec: Path, tmp_path: Path) -> None:
    words = words_for("sanflow", mvtec, tmp_path, "--seeds", "0", "--track-best", "3", "--no-chart")
    assert reproduce_here(words) == 0
    found = json.loads((tmp_path / "sanflow.json").read_text())["rows"][0]["metrics"]["aupro"]
    assert found["best_on_test"]["mean"] == pytest.approx(found["ours"]["mean"] + 1)
    assert "best on test (chosen on the test images)" in (tmp_path / "sanflow.md").read_text()


def test_nothing_is_made_twice(mvtec: Path, tmp_path: Path) -> None:
    first, again, larger, other = Counting(), Counting(), Counting(), Counting()
    words = words_for("table6", mvtec, tmp_path, "--no-chart")
    assert reproduce_here([*words, "--seeds", "0"], first) == 0
    assert first.calls == 12
    assert reproduce_here([*words, "--seeds", "0"], again) == 0
    assert again.calls == 0
    assert reproduce_here([*words, "--seeds", "0", "1"], larger) == 0
    assert larger.calls == 12
    # SANFlow of Table 6 is the margin of 1.0, and Table 4's.
    assert reproduce_here(words_for("margin", mvtec, tmp_path, "--no-chart", "--seeds", "0"), other) == 0
    assert other.calls == 4


@pytest.mark.parametrize(
    "more",
    [
        ["--epochs", "4"],
        ["--epochs", "screw=4"],
        ["--fit", "batch_size=2"],
        ["--set", "blocks=2"],
        ["--image-size", "32"],
        ["--track-best", "2"],
    ],
    ids=" ".join,
)
def test_another_configuration_is_another_cell(mvtec: Path, tmp_path: Path, more: list[str]) -> None:
    words = words_for("sanflow", mvtec, tmp_path, "--no-chart", "--seeds", "0", "--categories", "screw")
    assert reproduce_here(words) == 0
    work = Counting()
    assert reproduce_here([*words, *more], work) == 0
    assert work.calls == 1


def test_an_interrupted_run_goes_on_where_it_stopped(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for("table5", mvtec, tmp_path, "--no-chart", "--seeds", "0", "--categories", "screw")
    stopped, rest = Counting(n4=KeyboardInterrupt), Counting()
    real = reproduce.run
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "run", lambda options, command: real(options, command, stopped, here))
        assert reproduce.main(words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert "**Unfinished: 3 of 7 cells.**" in (tmp_path / "table5.md").read_text()
    assert reproduce_here(words, rest) == 0
    assert (stopped.calls, rest.calls) == (4, 4)


def test_a_failing_cell_does_not_lose_the_others(
    mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for("table5", mvtec, tmp_path, "--seeds", "0", "1", "--categories", "screw")
    work, again = Counting(n3=ValueError), Counting()
    assert reproduce_here(words, work) == 1
    assert work.calls == 14
    err = capsys.readouterr().err
    assert "failed: SANFlow, screw, seed 0: ValueError: out of order" in err
    summary = json.loads((tmp_path / "table5.json").read_text())
    assert (summary["done"], summary["planned"], len(summary["missing"])) == (13, 14, 1)
    found = {row["row"]: row["metrics"]["aupro"] for row in summary["rows"]}
    assert found["SANFlow"]["ours"]["seeds"] == found["1d"]["against"]["ours"]["seeds"] == [1]
    assert found["1d"]["ours"]["seeds"] == [0, 1]
    assert "the traceback" in next((tmp_path / "failures").iterdir()).read_text()
    assert reproduce_here(words, again) == 0
    assert again.calls == 1


def test_a_broken_cell_is_made_again_with_a_notice(
    mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for("sanflow", mvtec, tmp_path, "--no-chart", "--seeds", "0")
    assert reproduce_here(words) == 0
    victim = sorted((tmp_path / "cells").iterdir())[0]
    victim.write_text(victim.read_text()[:50])
    work = Counting()
    capsys.readouterr()
    assert reproduce_here(words, work) == 0
    assert work.calls == 1
    assert f"{victim}: broken" in capsys.readouterr().err


def test_other_data_are_other_cells_and_another_place_is_not(mvtec: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(mvtec, tmp_path / "copy"))
    words = ["--no-chart", "--seeds", "0", "--categories", "screw"]
    work = Counting()
    assert reproduce_here(words_for("sanflow", mvtec, tmp_path, *words), work) == 0
    assert reproduce_here(words_for("sanflow", copy, tmp_path, *words), work) == 0
    assert work.calls == 1
    mask = copy / "screw" / "ground_truth" / "hole" / "0_mask.png"
    mask.write_bytes((copy / "screw" / "ground_truth" / "hole" / "1_mask.png").read_bytes())
    assert reproduce_here(words_for("sanflow", copy, tmp_path, *words), work) == 0
    assert work.calls == 2


def test_rows_that_took_other_numbers_of_steps_are_pointed_out(mvtec: Path, tmp_path: Path) -> None:
    def uneven(job: Job) -> Any:
        result = pretend(job)
        if not job.cell.arguments["synthesis"]:
            result["steps"] = 7
            CellStore(job.store).put(job.cell.config(), result, {"command": ""})
        return result

    words = words_for("table5", mvtec, tmp_path, "--no-chart", "--seeds", "0", "--categories", "screw")
    assert reproduce_here(words, uneven) == 0
    warnings = json.loads((tmp_path / "table5.json").read_text())["warnings"]
    assert warnings == ["2a and SANFlow took different numbers of optimiser steps on screw: [7] and [6]"]


def test_the_chart_is_a_png_and_an_svg(mvtec: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the chart needs the extra plot")
    from PIL import Image

    words = words_for("table5", mvtec, tmp_path, "--seeds", "0", "--categories", "screw", "--rows", "2a", "SANFlow")
    assert reproduce_here(words) == 0
    with Image.open(tmp_path / "table5.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10
    assert ElementTree.parse(tmp_path / "table5.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table9"], "TABLE must be one of"),
        ([], "TABLE must be one of"),
        (["table5"], "--data must name"),
        (["table5", "--data", "nowhere"], "--data nowhere"),
        (["table5", "--data", "DATA", "--categories", "cashew"], "--categories cashew: .* has screw, toothbrush"),
        (["table5", "--data", "DATA", "--epochs", "cashew=3"], "--epochs cashew=3: expected one of screw, toothbrush"),
        (["table5", "--data", "DATA", "--epochs", "0"], "--epochs 0: expected N"),
        (["table5", "--data", "DATA", "--rows", "4z"], "--rows 4z: table5 has 1d"),
        (["table5", "--data", "DATA", "--set", "colour=red"], "--set colour: no recipe of this table"),
        (["table5", "--data", "DATA", "--set", "blocks=red"], "--set blocks red: expected int"),
        (["table5", "--data", "DATA", "--set", "blocks"], "--set blocks: expected NAME=VALUE"),
        (["table5", "--data", "DATA", "--fit", "luck=1"], "--fit luck: expected one of batch_size"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(mvtec) if word == "DATA" else word for word in words]
    assert reproduce.main([*given, "--no-chart", "--output", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_epochs_of_one_category_go_above_those_of_all() -> None:
    from benchmarks.reproduce.options import epochs_of

    assert epochs_of(["screw=3", "20"], ["screw", "pill"]) == {"screw": 3, "pill": 20}
    assert epochs_of(["screw=3"], ["screw", "pill"]) == {"screw": 3, "pill": None}
