"""Figures that tests record, and the pages that show them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from benchmarks.trust import __main__ as trust
from benchmarks.trust import page as trust_page
from benchmarks.trust import parts as trust_parts
from benchmarks.trust.parts import PARTS, Part
from benchmarks.trust.tests import Case, FailedTestsError, run_tests

ROOT = Path(__file__).resolve().parents[2]


def test_pages_show_the_committed_figures() -> None:
    parts = trust.kept()
    assert list(parts) == ["real", *PARTS]
    shown = []
    for page in trust_page.PAGES:
        text = page.read_text(encoding="utf-8")
        assert trust_page.filled(text, parts) == text, "run python -m benchmarks.trust --page"
        shown += re.findall(r"<!-- figures: (\w+) -->\n\n\|", text)
    assert sorted(shown) == sorted(trust_page.TABLES)


def test_parts_name_existing_tests_and_modules() -> None:
    places = [ROOT / place for part in PARTS.values() for place in part.tests]
    assert [place for place in places if not place.exists()] == []
    files = {file.stem for place in places for file in (place.glob("*.py") if place.is_dir() else [place])}
    assert trust_parts.MODULES.keys() <= files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_counts(n, record_property):\n"
        "    record_property('kills', n)\n"
        "def test_skips():\n"
        "    pytest.skip('needs a GPU')\n"
    )
    return tmp_path


def test_run_tests_returns_recorded_properties(project: Path) -> None:
    assert run_tests(["test_it.py"], project) == [
        Case("test_it", "test_counts", "passed", {"kills": "1"}),
        Case("test_it", "test_counts", "passed", {"kills": "2"}),
        Case("test_it", "test_skips", "skipped", {}, "needs a GPU"),
    ]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def test_fails():\n    assert 1 == 2\n", "1 of 1 tests fail: test_fails"),
        ("import nothing_of_the_kind\n", "1 of 1 tests fail"),
        ("", "there are no tests"),
    ],
)
def test_run_tests_raises_on_failures(code: str, words: str, project: Path) -> None:
    (project / "test_it.py").write_text(code)
    with pytest.raises(FailedTestsError, match=words):
        run_tests(["test_it.py"], project)
    with pytest.raises(FailedTestsError):
        run_tests(["test_none.py"], project)


def test_only_replaces_one_part(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    for name in ("calibration.json", "trust.json"):
        shutil.copy(trust.RESULTS / name, results / name)
    before = json.loads((results / "trust.json").read_text())["parts"]
    page.write_text("before\n<!-- figures: killed -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(trust, "PAGES", (page,))
    monkeypatch.setitem(trust_page.TABLES, "killed", lambda parts: str(parts["kills"]["figures"]["kills"]))
    counted = Part((str(project / "test_it.py"),), lambda cases: {"kills": len(cases)})
    monkeypatch.setitem(PARTS, "kills", counted)
    assert trust.main(["--only", "kills", "--results", str(results)]) == 0
    after = json.loads((results / "trust.json").read_text())["parts"]
    assert list(after) == list(before)
    assert {name: after[name] for name in after if name != "kills"} == {n: before[n] for n in before if n != "kills"}
    assert (after["kills"]["passed"], after["kills"]["skipped"]) == (2, {"needs a GPU": 1})
    assert after["kills"]["command"].startswith("python -m benchmarks.trust --only kills")
    assert after["kills"]["seeds"] == "fixed in the tests"
    assert page.read_text() == "before\n<!-- figures: killed -->\n\n3\n\n<!-- end -->\nafter\n"
    (project / "test_it.py").write_text("def test_fails():\n    assert False\n")
    assert trust.main(["--only", "kills", "--results", str(results)]) == 1
    assert "error: kills: 1 of 1 tests fail: test_fails; its figures are not changed" in capsys.readouterr().err
    assert json.loads((results / "trust.json").read_text())["parts"] == after


def case(test: str, outcome: str = "passed", reason: str = "", **properties: str) -> Case:
    return Case("test_module", test, outcome, properties, reason)


def test_bad_input_is_counted_by_group_and_module() -> None:
    cases = [
        case("test_row", group="Files", refused="1"),
        case("test_row", group="Files", refused="0"),
        case("test_row", "skipped", "needs root", group="Files", refused="1"),
        case("test_row", group="Tensors", refused="1"),
        case("test_metrics"),
        case("test_metrics"),
        case("test_metrics", "skipped"),
    ]
    assert trust_parts.bad_input(cases) == {
        "groups": {"Files": {"rejected": 1, "valid": 1, "not tested": 1}, "Tensors": {"rejected": 1}},
        "cases": {"test_module": {"test_metrics": 2}},
    }


def test_kills_are_added_up() -> None:
    cases = [
        case("test_training", a="30", b="21", runs="3"),
        case("test_predict", kills="2", difference="1e-7"),
        case("test_predict", kills="3", difference="0.0"),
        case("test_table", kills="8", cells="4"),
        case("test_full_disk"),
    ]
    assert trust_parts.kills(cases) == {
        "training": {"kills": 51, "places": {"a": 30, "b": 21}, "runs": 3},
        "predicting": {"kills": 5, "runs": 2, "difference": 1e-7},
        "benchmark": {"kills": 8, "cells": 4},
        "cases": {"test_module": {"test_full_disk": 1}},
    }


def test_differences_are_the_largest() -> None:
    exported = [
        case("test_small", recipe="x", torch="0.0", onnx="1e-6"),
        case("test_on_photographs", recipe="x", torch="1e-7"),
        case("test_on_photographs", recipe="x", onnx="2e-7"),
    ]
    found = trust_parts.export(exported)
    assert found == {"small": {"x": {"torch": 0.0, "onnx": 1e-6}}, "photographs": {"x": {"torch": 1e-7, "onnx": 2e-7}}}
    assert trust_page.largest(found["photographs"]) == "torch.export 1.0e-07, ONNX Runtime 2.0e-07"
    scores = [case("test_score", recipe="x", difference=d) for d in ("1e-7", "3e-7")]
    assert trust_parts.same_score(scores) == {"differences": {"x": 3e-7}}
