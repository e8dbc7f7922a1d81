"""benchmarks/gpu.sh without a GPU: its parts on the CPU, limits of time, failures, resuming, and its wheels."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import memory, part, parts, runner, wheels
from benchmarks.gpu.modes import captured, from_host, scoring
from benchmarks.gpu.parts import PARTS, WHEELS, Part, missing
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.profiles import occupied
from benchmarks.gpu.record import Record, read
from benchmarks.gpu.report import TARGETS, report, verdict
from benchmarks.gpu.runner import Options, run

ROOT = Path(__file__).resolve().parents[2]


def plan_of(path: Path, seconds: float = 1e4) -> Plan:
    return Plan("cpu", True, None, Record(path / "part.json", {"rehearsal": True}, seconds))


def options_of(path: Path, minutes: float = 5.0, again: bool = False) -> Options:
    return Options(minutes, path, None, again, rehearse=True)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Replace the process of a part by a script, whose text the test gives."""

    def use(name: str, script: str) -> None:
        (tmp_path / f"{name}.py").write_text(script, "utf-8")

    start = subprocess.Popen

    def popen(words, **given):
        script = tmp_path / f"{words[3]}.py"
        return start([sys.executable, str(script), *words[3:]], **{**given, "cwd": tmp_path})

    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    return use


FINISHED = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
(folder / (sys.argv[1] + ".json")).write_text(json.dumps({"status": "done", "rehearsal": True, "rows": []}))
"""


def test_a_failing_and_a_hanging_part_do_not_stop_the_others(fake, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "MARGIN", 0.5)
    running = FINISHED.replace('"done"', '"running"')
    fake("tests", running + "import time; print('waits', flush=True); time.sleep(600)")
    fake("scores", running + "print('broken', flush=True); import os; os.abort()")
    fake("memory", FINISHED)
    shares = {"tests": Part(0.01, "hangs", ()), "scores": Part(0.3, "crashes", ()), "memory": Part(0.3, "works", ())}
    monkeypatch.setattr(runner, "PARTS", {**PARTS, **shares})
    assert not run(options_of(tmp_path), list(shares), ["benchmarks/gpu.sh"])
    found = {name: read(tmp_path / f"{name}.json") for name in shares}
    assert [found[name]["status"] for name in shares] == ["timed out", "failed", "done"]
    assert "it took longer than" in found["tests"]["reason"]
    assert found["tests"]["log"] == "waits\n"
    assert found["scores"]["reason"] == "the process ended with -6"
    assert "broken" in found["scores"]["log"]
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "`tests.json`: timed out, it took longer than" in text
    assert "`memory.json`: done." in text


def test_parts_that_are_done_are_not_run_again(fake, tmp_path: Path, capsys) -> None:
    fake("memory", FINISHED)
    assert run(options_of(tmp_path), ["memory"], [])
    fake("memory", "raise SystemExit(3)")
    assert run(options_of(tmp_path), ["memory"], [])
    assert "memory: done before" in capsys.readouterr().out
    real = Options(5.0, tmp_path, None, again=False, rehearse=False)
    assert not run(real, ["memory"], [])  # a rehearsal is no result
    fake("memory", FINISHED)
    assert run(options_of(tmp_path), ["memory"], [])
    fake("memory", "raise SystemExit(3)")
    assert not run(options_of(tmp_path, again=True), ["memory"], [])


def test_a_missing_module_is_named_and_its_part_skipped(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "PARTS", {"memory": Part(1.0, "memory", ("json", "no_such_module"))})
    assert not run(options_of(tmp_path), ["memory"], [])
    found = read(tmp_path / "memory.json")
    assert found["status"] == "skipped"
    assert found["reason"].startswith("no_such_module not installed; --wheels must name a folder")


def test_a_part_without_a_gpu_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert part.main(["memory", "--output", str(tmp_path), "--seconds", "60"]) == 1
    found = read(tmp_path / "memory.json")
    assert (found["status"], found["reason"]) == ("failed", "torch finds no CUDA device; --rehearse needs none")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("no C compiler"), OSError()])
def test_a_failed_measurement_is_recorded_and_the_next_follows(error: Exception, tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json", {}, 100.0)

    def fails() -> float:
        raise error

    assert record.attempt("first", fails) is None
    assert record.attempt("second", lambda: 3) == 3
    record.finish()
    found = read(tmp_path / "a.json")
    assert [x["what"] for x in found["failed"]] == ["first"]
    assert found["failed"][0]["error"].startswith(type(error).__name__)
    assert found["status"] == "done"


def test_a_lost_device_ends_the_part(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json", {}, 100.0)

    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        record.attempt("first", fails)


def test_what_does_not_fit_into_the_time_is_left_for_another_run(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json", {}, 1.0)
    assert record.attempt("long", lambda: 1, least=50.0) is None
    record.finish()
    found = read(tmp_path / "a.json")
    assert found["status"] == "incomplete"
    assert found["skipped"] == [{"what": "long", "reason": "no time was left"}]


def test_results_are_on_disk_after_every_row(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json", {"device": "X"}, 100.0)
    for number in range(3):
        record.row(f"row {number}", ms=number)
        assert len(read(tmp_path / "a.json")["rows"]) == number + 1
    assert read(tmp_path / "a.json")["status"] == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_published_form_and_graphs_give_the_scores_of_the_detector(tmp_path: Path) -> None:
    pytest.importorskip("FrEIA", reason="the published formulation uses an extra: semflow[freia]")
    from benchmarks.gpu.published import pair, scoring_in_groups

    plan = plan_of(tmp_path)
    ours, theirs = pair(plan)
    batches = [plan.images(3, seed) for seed in (0, 1)]
    with torch.no_grad():
        score = scoring(plan, ours, bf16=False)
        expected = from_host(plan, score, batches)()
        assert expected.std() > 1e-3
        for group in (7, None):
            found = from_host(plan, scoring_in_groups(plan, theirs, group, bf16=False), batches)()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(from_host(plan, captured(plan, score, batches[1]), batches)(), expected)
    detector = plan.build("sanflow").eval()
    scores = from_host(plan, scoring(plan, detector, bf16=False), batches)()
    torch.testing.assert_close(scores, detector.predict(torch.cat(batches) / 255).score)


def test_memory_is_measured(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    memory.measure(plan)
    plan.record.finish()
    found = read(tmp_path / "part.json")
    assert (found["status"], found["failed"]) == ("done", [])
    assert [row["what"] for row in found["rows"] if "anomalib" not in row["what"]] == [
        "coreset", "search", "fit", "prediction, batch 6"
    ]  # fmt: skip
    assert found["figures"].keys() == {"coreset_s"}


@pytest.mark.slow
def test_all_parts_run_on_the_cpu(tmp_path: Path) -> None:
    """The rehearsal: about a minute on an idle core."""
    words = [str(ROOT / "benchmarks/gpu.sh"), "--rehearse", "--minutes", "30", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    found = {name: read(tmp_path / f"{name}.json") for name in PARTS}
    failed = {name: [x["error"] for x in content["failed"]] for name, content in found.items() if content["failed"]}
    assert not failed
    assert {content["status"] for content in found.values()} == {"done"}, done.stdout[-3000:]
    assert done.returncode == 0
    outcomes = found["tests"]["rows"][-1]
    assert outcomes["passed"] > 30
    assert outcomes["failed"] == 0
    assert all("rehearsal" in line for line in done.stdout.splitlines() if line.startswith("| ") and "at " in line)
    assert len(found["profiles"]["texts"]) == 3  # a rehearsal trains one batch size
    assert all(content["figures"] for name, content in found.items() if name not in ("tests", "profiles"))
    rows = found["inference"]["rows"]
    names = {row["what"] for row in rows}
    for mode in (
        "eager, float32",
        "graph, float32",
        "eager, bfloat16",
        "graph, bfloat16",
        "compiled and graph, bfloat16",
    ):
        assert {f"semflow, {mode}, batch {batch}" for batch in (4, 1)} < names
    assert max(row["score_error"] for row in rows if "float32" in row["what"]) < 1e-3
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md"}


def test_report_says_which_targets_are_reached(tmp_path: Path) -> None:
    assert verdict(TARGETS[1], 1499.0) == "missed"
    for name, figures in {"inference": {"images_per_s": 2000.0}, "memory": {"coreset_s": 25.0}}.items():
        content = {"status": "done", "device": "X", "figures": figures, "rows": [{"what": "a", "ms": 1}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content), "utf-8")
    lines = report(tmp_path).splitlines()
    assert "| SANFlow, WRN-50, 256 px: images per second | at least 1500 | 2000 | reached |" in lines
    assert "| coreset of 327,680 x 1,536 to 10 %: seconds | at most 20 | 25 | missed |" in lines
    assert sum(line.endswith("| not measured |") for line in lines) == len(TARGETS) - 2


def test_gaps_of_spans_that_overlap() -> None:
    spans = [(5.0, 9.0, "c"), (0.0, 4.0, "a"), (1.0, 2.0, "b"), (20.0, 21.0, "d")]
    assert occupied(spans) == (9.0, 21.0, [(11.0, "c"), (1.0, "a")])
    assert occupied([]) == (0, 0, [])


def test_wheels_bring_all_that_their_packages_import() -> None:
    """With `pip install --no-deps`, a requirement that is not in the list would be missing."""
    from packaging.requirements import Requirement

    known = {name.lower() for name in (*WHEELS.values(), *parts.ALWAYS)}
    for name in sorted(set(WHEELS.values())):
        try:
            needed = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        here = {
            r.name.lower().replace("_", "-") for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})
        }
        assert here <= known, name


def test_parts_import_only_what_they_name() -> None:
    """FrEIA, the packaged weights and the command line's packages may be missing."""
    hidden = sorted(set(WHEELS) - set(parts.SEMFLOW))
    code = f"import importlib, sys; sys.modules.update(dict.fromkeys({hidden}))\n"
    code += f"for name in {sorted(set(PARTS) - {'tests'})}: importlib.import_module(f'benchmarks.gpu.{{name}}')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_wheels_are_installed_where_modules_are_missing(tmp_path: Path, monkeypatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(wheels, "missing", lambda names: ["rich", "FrEIA"])
    monkeypatch.setattr(wheels, "_pip", lambda words, quiet=False: asked.append(list(words)) or "")
    assert wheels.install(tmp_path, tmp_path / "site") == []
    assert asked[0][-2:] == ["FrEIA", "rich"]
    monkeypatch.setattr(
        wheels, "_pip", lambda words, quiet=False: "no matching distribution" if "FrEIA" in words else ""
    )
    assert wheels.install(tmp_path, tmp_path / "site") == ["FrEIA: no matching distribution"]


def test_the_command_needs_only_the_standard_library(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import benchmarks.gpu.__main__
outside = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert outside <= {"benchmarks"}, outside
"""
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)


def test_data_must_be_a_category(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--data", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--data must be a category of MVTec AD, with a folder train/good, but got" in capsys.readouterr().err


def test_missing_names_modules_that_cannot_be_imported() -> None:
    assert missing(("json", "no_such_module")) == ["no_such_module"]
