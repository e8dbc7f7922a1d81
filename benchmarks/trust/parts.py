"""Parts of the figures: the test files that are run, and what their records add up to.

Records are found by their properties and not by the names of the tests, which may change.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .tests import Case

Figures = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Test files or folders, and the function that sums up their records."""

    tests: tuple[str, ...]
    figures: Callable[[Sequence[Case]], Figures]


def with_properties(cases: Sequence[Case], *names: str) -> list[Case]:
    """Return the passed cases that recorded all of these properties."""
    return [c for c in cases if c.outcome == "passed" and all(name in c.properties for name in names)]


def counts(cases: Sequence[Case]) -> Figures:
    """Return the number of passed cases without properties, by module and test."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        if case.outcome == "passed" and not case.properties:
            found[case.module][case.test] += 1
    return {"cases": {module: dict(tests) for module, tests in found.items()}}


def bad_input(cases: Sequence[Case]) -> Figures:
    """Return the kinds of invalid input by group: rejected with the documented error, valid, or not tested."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        if "group" in case.properties:
            what = "rejected" if case.properties["refused"] == "1" else "valid"
            groups[case.properties["group"]][what if case.outcome == "passed" else "not tested"] += 1
    return {"groups": {group: dict(found) for group, found in groups.items()}, **counts(cases)}


def exchangeable(cases: Sequence[Case]) -> Figures:
    """Return the alarms among exchangeable normals, by the number of calibration images and the requested rate."""
    rows: dict[tuple[int, float], Figures] = {}
    trials = 0.0
    for case in with_properties(cases, "trials", "alarms"):
        images, rate, exact, alarms, low, high, trials = (
            float(case.properties[name]) for name in ("images", "rate", "exact", "alarms", "low", "high", "trials")
        )
        row = rows.setdefault(
            (int(images), rate),
            {"images": int(images), "rate": rate, "exact": exact, "bounds": [low / trials, high / trials], "seen": {}},
        )
        row["seen"][case.properties["kind"]] = alarms / trials
    return {"rows": [rows[key] for key in sorted(rows)], "trials": int(trials)}


def same_score(cases: Sequence[Case]) -> Figures:
    """Return the largest difference of a recipe's scores between single images, batches and other orders."""
    found: dict[str, float] = {}
    for case in with_properties(cases, "recipe", "difference"):
        name = case.properties["recipe"]
        found[name] = max(found.get(name, 0.0), float(case.properties["difference"]))
    return {"differences": found}


def kills(cases: Sequence[Case]) -> Figures:
    """Return the numbers of SIGKILLs by the killed command, and of other tests of failing writes."""
    (training,) = with_properties(cases, "runs")
    places = {name: int(value) for name, value in training.properties.items() if name != "runs"}
    predicting = with_properties(cases, "kills", "difference")
    (benchmark,) = with_properties(cases, "kills", "cells")
    return {
        "training": {"kills": sum(places.values()), "places": places, "runs": int(training.properties["runs"])},
        "predicting": {
            "kills": sum(int(case.properties["kills"]) for case in predicting),
            "runs": len(predicting),
            "difference": max(float(case.properties["difference"]) for case in predicting),
        },
        "benchmark": {name: int(benchmark.properties[name]) for name in ("kills", "cells")},
        **counts(cases),
    }


def export(cases: Sequence[Case]) -> Figures:
    """Return the largest difference by recipe and format, of small detectors and of one on photographs."""
    found: Figures = {"small": defaultdict(dict), "photographs": defaultdict(dict)}
    for case in with_properties(cases, "recipe"):
        rows = found["photographs" if "pretrained" in case.test or "photograph" in case.test else "small"]
        for name, value in case.properties.items():
            if name != "recipe":
                rows[case.properties["recipe"]][name] = float(value)
    return {name: dict(rows) for name, rows in found.items()}


def processes(cases: Sequence[Case]) -> Figures:
    """Return the largest difference of a weight between one process and several, by kind of training."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for case in with_properties(cases, "case", "processes", "difference"):
        found[case.properties["case"]][case.properties["processes"]] = float(case.properties["difference"])
    return {"weights": dict(found), **counts(cases)}


PARTS = {
    "exchangeable": Part(("tests/detectors/test_conformal.py",), exchangeable),
    "same_score": Part(("tests/recipes/test_same_score.py",), same_score),
    "bad_input": Part(("tests/bad_input",), bad_input),
    "files": Part(("tests/training/test_checkpoint_fuzz.py", "tests/app/export/test_export_broken_files.py"), counts),
    "kills": Part(
        (
            "tests/training/test_kill.py",
            "tests/app/cli/test_cli_restart.py",
            "tests/benchmarks/test_reproduce_kill.py",
        ),
        kills,
    ),
    "processes": Part(("tests/training/test_distributed.py", "tests/app/cli/test_cli_distributed.py"), processes),
    "export": Part(("tests/app/export/test_export_recipes.py",), export),
}
"""By name, the long ones last."""

MODULES = {
    "test_constructors": "arguments of constructors and recipes: wrong types, numbers out of range",
    "test_fuzzing": "random input to public functions, many examples per test",
    "test_checkpoint_fuzz": "models, checkpoints and configurations: truncated, changed, of other shapes",
    "test_export_broken_files": "exported files: truncated, changed, foreign, with code inside",
    "test_kill": "training on full disks and in read-only folders",
    "test_cli_restart": "predict and evaluate: restarts, full disks, quotas, read-only folders",
}
"""Modules whose tests are counted, and their subject."""
