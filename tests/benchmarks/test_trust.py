"""The figures of trust: what is counted, that a failing test leaves none, and that the pages say what is kept."""

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


def test_the_pages_say_what_is_kept() -> None:
    parts = trust.kept()
    assert list(parts) == ["real", *PARTS]
    shown = []
    for page in trust_page.PAGES:
        text = page.read_text(encoding="utf-8")
        assert trust_page.filled(text, parts) == text, "run python -m benchmarks.trust --page"
        shown += re.findall(r"<!-- figures: (\w+) -->\n\n\|", text)
    assert sorted(shown) == sorted(trust_page.TABLES)


def test_what_is_kept_is_what_was_promised() -> None:
    parts = trust.kept()
    figures = {name: part.get("figures") for name, part in parts.items()}
    assert sum(sum(group.values()) for group in figures["bad_input"]["groups"].values()) >= 60
    assert figures["kills"]["training"]["kills"] >= 50
    assert figures["kills"]["predicting"]["kills"] >= 10
    for row in figures["exchangeable"]["rows"]:
        assert all(rate <= row["bounds"][1] for rate in row["seen"].values())
    assert all(set(found) == set(trust_page.FORMATS) for found in figures["export"]["small"].values())
    assert figures["export"]["photographs"].keys() == {"sanflow", "fastflow"}
    for recipes in figures["export"].values():
        assert all(difference < 1e-4 for found in recipes.values() for difference in found.values())
    assert all(difference < 1e-5 for case in figures["processes"]["weights"].values() for difference in case.values())
    assert all(difference < 1.2e-6 for difference in figures["same_score"]["differences"].values())
    for name, seeds in parts["real"]["results"].items():
        assert [int(seed) for seed in seeds] == parts["real"]["seeds"], name
    assert {"screw", "toothbrush", "brick", "grass", "gravel"} == set(parts["real"]["results"])
    for part in parts.values():
        assert part["commit"].endswith(tuple("0123456789abcdef")), "made with files that are not committed"
        assert part["machine"]


def test_every_part_names_tests_that_are_there() -> None:
    code = Path(trust_parts.__file__).read_text()
    named = set(re.findall(r"(?:\"|::)(test_\w+)\"", code)).union(*trust_parts.BESIDE.values())
    places = {ROOT / place.partition("::")[0] for part in PARTS.values() for place in part.tests}
    files = [file for place in places for file in (place.glob("*.py") if place.is_dir() else [place])]
    there = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
    assert named
    assert named <= there


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


def test_what_tests_record_is_read(project: Path) -> None:
    assert run_tests(["test_it.py"], project) == [
        Case("test_counts", "passed", {"kills": "1"}),
        Case("test_counts", "passed", {"kills": "2"}),
        Case("test_skips", "skipped", {}, "needs a GPU"),
    ]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def test_fails():\n    assert 1 == 2\n", "1 of 1 tests fail: test_fails"),
        ("import nothing_of_the_kind\n", "1 of 1 tests fail"),
        ("", "there is no test"),
    ],
)
def test_what_does_not_pass_has_no_figures(code: str, words: str, project: Path) -> None:
    (project / "test_it.py").write_text(code)
    with pytest.raises(FailedTestsError, match=words):
        run_tests(["test_it.py"], project)
    with pytest.raises(FailedTestsError):
        run_tests(["test_none.py"], project)


def test_one_part_is_counted_anew_and_the_others_stay(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    for name in ("calibration.json", "trust.json"):
        shutil.copy(trust.RESULTS / name, results / name)
    before = json.loads((results / "trust.json").read_text())["parts"]
    page.write_text("before\n<!-- figures: killed -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(trust, "PAGES", (page,))
    counted = Part((str(project / "test_it.py"),), lambda cases: {"training": {"places": {"somewhere": len(cases)}}})
    monkeypatch.setitem(PARTS, "kills", counted)
    assert trust.main(["--only", "kills", "--results", str(results)]) == 0
    after = json.loads((results / "trust.json").read_text())["parts"]
    assert list(after) == list(before)
    assert {name: after[name] for name in after if name != "kills"} == {n: before[n] for n in before if n != "kills"}
    assert (after["kills"]["passed"], after["kills"]["skipped"]) == (2, {"needs a GPU": 1})
    assert after["kills"]["command"].startswith("python -m benchmarks.trust --only kills")
    assert after["kills"]["seeds"] == "fixed in the tests"
    assert page.read_text() == (
        "before\n<!-- figures: killed -->\n\n| training was killed | times |\n| --- | --- |\n| somewhere | 3 |\n\n"
        "<!-- end -->\nafter\n"
    )
    (project / "test_it.py").write_text("def test_fails():\n    assert False\n")
    assert trust.main(["--only", "kills", "--results", str(results)]) == 1
    assert "error: kills: 1 of 1 tests fail: test_fails; no figures" in capsys.readouterr().err
    assert json.loads((results / "trust.json").read_text())["parts"] == after


def test_figures_are_sums_and_largest_values() -> None:
    bad = [
        Case("test_bad_input", "passed", {"group": "Files", "refused": "1"}),
        Case("test_bad_input", "passed", {"group": "Files", "refused": "0"}),
        Case("test_bad_input", "skipped", {"group": "Files", "refused": "1"}, "needs root"),
        Case("test_bad_input", "passed", {"group": "Tensors", "refused": "1"}),
        Case("test_metrics_of_anything", "passed", {}),
    ]
    assert trust_parts.bad_input(bad) == {
        "groups": {"Files": {"refused": 1, "works": 1, "not tried": 1}, "Tensors": {"refused": 1}},
        "cases": {"test_metrics_of_anything": 1},
    }
    kills = [
        Case("test_killed_fifty_times_it_ends_as_if_it_had_not_been", "passed", {"a": "30", "b": "21", "runs": "3"}),
        *(
            Case("test_killed_at_any_moment_it_goes_on", "passed", {"kills": str(k), "difference": d})
            for k, d in ((2, "1e-7"), (3, "0.0"))
        ),
        Case("test_killed_at_any_moment_each_cell_is_there_once", "passed", {"kills": "8", "cells": "4"}),
    ]
    assert trust_parts.kills(kills) == {
        "training": {"kills": 51, "places": {"a": 30, "b": 21}, "runs": 3},
        "predicting": {"kills": 5, "runs": 2, "difference": 1e-7},
        "benchmark": {"kills": 8, "cells": 4},
    }
    exported = [
        Case(
            "test_a_recipe_has_its_own_numbers_after_export", "passed", {"recipe": "x", "torch": "0.0", "onnx": "1e-6"}
        ),
        Case("test_a_pretrained_backbone_on_photographs", "passed", {"recipe": "x", "torch": "1e-7"}),
        Case("test_a_pretrained_backbone_on_photographs", "passed", {"recipe": "x", "onnx": "2e-7"}),
    ]
    found = trust_parts.export(exported)
    assert found == {"small": {"x": {"torch": 0.0, "onnx": 1e-6}}, "photographs": {"x": {"torch": 1e-7, "onnx": 2e-7}}}
    assert trust_page.largest(found["photographs"]) == {"torch.export": 1e-7, "ONNX Runtime": 2e-7}
    scores = [Case("test_an_image_has_one_score", "passed", {"recipe": "x", "difference": d}) for d in ("1e-7", "3e-7")]
    assert trust_parts.same_score(scores) == {"differences": {"x": 3e-7}}
