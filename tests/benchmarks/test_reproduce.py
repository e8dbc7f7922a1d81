"""The command line of `benchmarks.reproduce`, with a replacement for training."""

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
from benchmarks.reproduce.cells import Cell
from benchmarks.reproduce.options import parse
from benchmarks.reproduce.tables import TABLES, table
from benchmarks.shared.runner import Outcome
from benchmarks.shared.store import CellStore
from benchmarks.shared.study import Failure, Job

from semflow.errors import ConfigError
from semflow.recipes import RECIPES, resolve_settings

SMALL = ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--epochs", "3"]
CATEGORIES = ["screw", "toothbrush"]


def figure(cell: Cell, metric: str) -> float:
    """Return a figure in [0, 1] that depends on all properties of a cell."""
    settings = cell.arguments
    level = 0.5 + 0.05 * CATEGORIES.index(cell.data.category) + 0.01 * cell.key.seed**2
    level += 0.1 * (settings.get("synthesis", True) is not None)
    level += 0.02 * (settings.get("statistics.variance", "predicted") == "predicted")
    return level + {"image_auroc": 0.0, "pixel_auroc": 0.1, "aupro": 0.2}[metric]


def pretend(job: Job[Cell], steps: int = 6) -> list[Failure]:
    (cell,) = job.cells
    metrics = {metric: figure(cell, metric) for metric in ("image_auroc", "pixel_auroc", "aupro")}
    result: dict[str, Any] = {"metrics": metrics, "epochs": 3, "steps": steps, "train_images": 6, "test_images": 6}
    result |= {"train_seconds": 1.0, "train_cpu_seconds": 1.5, "evaluate_seconds": 0.5}
    result |= {"trained_parameters": 10, "peak_memory_mb": 100, "device": "cpu", "threads": 1}
    if cell.evaluations > 1:
        result["best"] = {m: {"value": v + 0.01, "epoch": 2} for m, v in metrics.items()}
    record = {"command": " ".join(job.command), "commit": "c", "versions": {"torch": "2"}, "machine": "m"}
    CellStore(job.store).append(cell.key, cell.settings, result, record)
    return []


def here(
    jobs: Sequence[Job[Cell]], work: Callable[[Job[Cell]], Any], at_a_time: int, threads: int | None
) -> Generator[Outcome[Job[Cell]], None, None]:
    """Run jobs as `run_all` does, without processes."""
    for job in jobs:
        try:
            yield Outcome(job, 1.0, work(job))
        except ValueError as error:
            yield Outcome(job, 1.0, None, f"ValueError: {error}", "the traceback")


class Counting:
    """`pretend` that counts its calls, and raises errors at some of them."""

    def __init__(self, **errors: type[BaseException]) -> None:
        self.errors = {int(call[1:]): error for call, error in errors.items()}
        self.calls = 0

    def __call__(self, job: Job[Cell]) -> list[Failure]:
        self.calls += 1
        if self.calls in self.errors:
            raise self.errors[self.calls]("out of order")
        return pretend(job)


def reproduce_here(words: Sequence[str], work: Callable[[Job[Cell]], Any] = pretend) -> int:
    return reproduce.run(parse(words), ("python", *words), work, here)


def words_for(name: str, data: Path, output: Path, *more: str) -> list[str]:
    return [name, "--data", str(data), "--output", str(output), *SMALL, *more]


def test_every_row_is_in_the_paper_or_a_control() -> None:
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


def test_tables_have_all_rows_of_the_paper() -> None:
    for name in ("table4", "table5", "table6", "margin", "tableS2", "tableS3", "tableS4", "tableS5", "tableS6"):
        printed = {row.method for row in load(name).rows if row.dataset == table(name).dataset}
        assert printed <= {row.name for row in table(name).rows}


def test_comparisons_with_predicted_variance_have_controls() -> None:
    for name in ("table4", "table5", "table6"):
        rows = {row.name: row for row in table(name).rows}
        assert rows["variance 1"].settings == {"statistics.variance": "fixed", "statistics.mode": 1.0}
        assert rows["learned"].settings == {"statistics.variance": "learned"}
    for flow in ("CFLOW-AD", "FastFlow"):
        rows = {row.name: row for row in table("tableS5").rows}
        assert rows[flow].settings == {"statistics": None}
        assert rows[f"{flow} learned"].settings == {"statistics.variance": "learned"}
        assert rows[f"{flow}+SP"].settings == {"statistics.variance": "predicted"}


def test_rows_with_the_same_cells_are_the_same_models() -> None:
    models: dict[str, set[tuple[str, str]]] = {}
    for name in TABLES:
        names = [row.cells or row.name for row in table(name).rows]
        assert len(set(names)) == len(names)
        for row in table(name).rows:
            arguments = resolve_settings(RECIPES[row.recipe], row.settings)
            models.setdefault(row.cells or row.name, set()).add((row.recipe, str(arguments)))
    assert {name: len(found) for name, found in models.items() if len(found) > 1} == {}
    assert len({model for found in models.values() for model in found}) == len(models)


def test_list_works_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in TABLES)
    assert reproduce.main(["table6", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(row.name in out for row in table("table6").rows)


def test_list_and_dry_run_show_finished_cells(mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_for("table5", mvtec, tmp_path, "--seeds", "0", "--categories", "screw", "--no-chart")
    assert reproduce_here([*words, "--rows", "2a"]) == 0
    work = Counting()
    capsys.readouterr()
    assert reproduce_here([*words, "--list"], work) == 0
    out = capsys.readouterr().out
    assert "7 cells, 1 of them done" in out
    assert re.search(r"done +2a +screw, seed 0", out)
    assert re.search(r"- +SANFlow +screw, seed 0", out)
    small = ["--set", "couplings.blocks=1", "couplings.position_channels=16", "backbone.strides=8,16"]
    assert reproduce_here([*words, "--rows", "2a", "SANFlow", "--dry-run", *small], work) == 0
    out = capsys.readouterr().out
    assert "2 cells, 0 of them done" in out  # other settings
    assert re.search(r"about \d+ s with 1 at a time", out)
    assert work.calls == 0


def test_table_has_the_figures_of_its_cells(mvtec: Path, tmp_path: Path) -> None:
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
    assert summary["provenance"]["command"].startswith("python table5 --data")
    text = (tmp_path / "table5.md").read_text()
    assert "compare the differences between rows" in text
    assert "- cells of commit c; torch 2\n- m; cpu, threads per cell: 1\n" in text
    assert "| SANFlow | the whole method | 98.70 | 95.35 | 66.17 ± 2.08 | -29.18 |" in text
    assert "Unfinished" not in text
    assert "best on test" not in text


def test_best_on_test_is_a_separate_column(mvtec: Path, tmp_path: Path) -> None:
    words = words_for("sanflow", mvtec, tmp_path, "--seeds", "0", "--track-best", "3", "--no-chart")
    assert reproduce_here(words) == 0
    found = json.loads((tmp_path / "sanflow.json").read_text())["rows"][0]["metrics"]["aupro"]
    assert found["best_on_test"]["mean"] == pytest.approx(found["ours"]["mean"] + 1)
    assert "best on test (chosen on the test images)" in (tmp_path / "sanflow.md").read_text()


def test_finished_cells_are_not_measured_again(mvtec: Path, tmp_path: Path) -> None:
    first, again, larger, other = Counting(), Counting(), Counting(), Counting()
    words = words_for("table6", mvtec, tmp_path, "--no-chart")
    assert reproduce_here([*words, "--seeds", "0"], first) == 0
    assert first.calls == 12
    assert reproduce_here([*words, "--seeds", "0"], again) == 0
    assert again.calls == 0
    assert reproduce_here([*words, "--seeds", "0", "1"], larger) == 0
    assert larger.calls == 12
    # The margin 1.0 is SANFlow, which Table 6 has.
    assert reproduce_here(words_for("margin", mvtec, tmp_path, "--no-chart", "--seeds", "0"), other) == 0
    assert other.calls == 4


@pytest.mark.parametrize(
    "more",
    [
        ["--epochs", "4"],
        ["--epochs", "screw=4"],
        ["--fit", "batch_size=2"],
        ["--set", "couplings.blocks=2"],
        ["--image-size", "32"],
        ["--track-best", "2"],
    ],
    ids=" ".join,
)
def test_cell_with_changed_settings_is_measured_again(
    mvtec: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for("sanflow", mvtec, tmp_path, "--no-chart", "--seeds", "0", "--categories", "screw")
    assert reproduce_here(words) == 0
    work = Counting()
    assert reproduce_here([*words, *more], work) == 0
    assert work.calls == 1
    assert "SANFlow, screw, seed 0: not reused, because its settings changed" in capsys.readouterr().err
    assert reproduce_here(words, work) == 0  # the first cell is still there
    assert work.calls == 1


def test_interrupted_run_continues(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for("table5", mvtec, tmp_path, "--no-chart", "--seeds", "0", "--categories", "screw")
    stopped, rest = Counting(n4=KeyboardInterrupt), Counting()
    real = reproduce.run
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "run", lambda options, command: real(options, command, stopped, here))
        assert reproduce.main(words) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert "**Unfinished: 3 of 7 cells.**" in (tmp_path / "table5.md").read_text()
    assert reproduce_here(words, rest) == 0
    assert (stopped.calls, rest.calls) == (4, 4)


def test_failing_cell_does_not_affect_the_others(
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
    assert summary["missing"] == ["SANFlow, screw, seed 0"]
    found = {row["row"]: row["metrics"]["aupro"] for row in summary["rows"]}
    assert found["SANFlow"]["ours"]["seeds"] == found["1d"]["against"]["ours"]["seeds"] == [1]
    assert found["1d"]["ours"]["seeds"] == [0, 1]
    assert "the traceback" in next((tmp_path / "failures").iterdir()).read_text()
    assert reproduce_here(words, again) == 0
    assert again.calls == 1


def test_incomplete_cell_is_measured_again_with_a_notice(
    mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for("sanflow", mvtec, tmp_path, "--no-chart", "--seeds", "0")
    assert reproduce_here(words) == 0
    file = tmp_path / "cells.jsonl"
    file.write_text(file.read_text()[:-50])
    work = Counting()
    capsys.readouterr()
    assert reproduce_here(words, work) == 0
    assert work.calls == 1
    assert f"{file}: skipped line 2, which is not a complete cell" in capsys.readouterr().err


def test_changed_data_are_measured_again_and_moved_data_are_not(mvtec: Path, tmp_path: Path) -> None:
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


def test_report_is_made_from_kept_cells_without_data(mvtec: Path, tmp_path: Path) -> None:
    words = words_for("table5", mvtec, tmp_path, "--seeds", "0", "1", "--no-chart", "--rows", "2a", "SANFlow")
    assert reproduce_here(words) == 0
    before = json.loads((tmp_path / "table5.json").read_text())
    assert reproduce_here(["table5", "--output", str(tmp_path), "--report", "--no-chart"], Counting(n1=ValueError)) == 0
    after = json.loads((tmp_path / "table5.json").read_text())
    assert after.pop("provenance")["command"] != before.pop("provenance")["command"]
    assert after == before
    words = ["margin", "--output", str(tmp_path), "--report", "--no-chart", "--rows", "margin 0.5"]
    with pytest.raises(ConfigError, match=r"must contain cells of margin 0\.5, but got none"):
        reproduce_here(words)


def test_different_numbers_of_steps_are_a_warning(mvtec: Path, tmp_path: Path) -> None:
    def uneven(job: Job[Cell]) -> Any:
        return pretend(job, steps=6 if "synthesis" not in job.cells[0].arguments else 7)

    words = words_for("table5", mvtec, tmp_path, "--no-chart", "--seeds", "0", "--categories", "screw")
    assert reproduce_here(words, uneven) == 0
    warnings = json.loads((tmp_path / "table5.json").read_text())["warnings"]
    assert warnings == ["2a and SANFlow took different numbers of optimizer steps on screw: [7] and [6]"]


def test_chart_is_written_as_png_and_svg(mvtec: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
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
        (["table5"], "--data must be the folder"),
        (["table5", "--data", "nowhere"], "--data nowhere must be a data set"),
        (["table5", "--report"], "cells.jsonl must contain cells of 1a, 1d"),
        (["table5", "--data", "DATA", "--categories", "cashew"], "--categories must be of screw, .* but got cashew"),
        (["table5", "--data", "DATA", "--epochs", "cashew=3"], "--epochs must name one of screw, .* but got cashew=3"),
        (["table5", "--data", "DATA", "--epochs", "0"], "--epochs must be N or CATEGORY=N .* but got 0"),
        (["table5", "--data", "DATA", "--rows", "4z"], "--rows must be of 1d, .* but got 4z"),
        (["table5", "--data", "DATA", "--set", "color=red"], "--set must be of backbone, .* but got color"),
        (["table5", "--data", "DATA", "--set", "couplings.blocks=red"], "blocks must be a whole number, but got 'red'"),
        (["table5", "--data", "DATA", "--set", "blocks"], "--set must have the form NAME=VALUE, but got blocks"),
        (["table5", "--data", "DATA", "--fit", "luck=1"], "--fit must set batch_size, .* but got luck"),
    ],
)
def test_invalid_arguments_are_one_line(
    words: list[str], message: str, mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(mvtec) if word == "DATA" else word for word in words]
    assert reproduce.main([*given, "--no-chart", "--output", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_epochs_of_one_category_override_those_of_all() -> None:
    from benchmarks.reproduce.options import epochs_of

    assert epochs_of(["screw=3", "20"], ["screw", "pill"]) == {"screw": 3, "pill": 20}
    assert epochs_of(["screw=3"], ["screw", "pill"]) == {"screw": 3, "pill": None}
