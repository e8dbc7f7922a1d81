"""What is counted: for each promise the tests that keep it, and the figures that their records add up to."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .tests import Case

__all__ = ["BESIDE", "PARTS", "Part"]

Figures = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Tests, and what to make of their records."""

    tests: tuple[str, ...]
    figures: Callable[[Sequence[Case]], Figures]


def of(cases: Iterable[Case], *tests: str) -> list[Case]:
    """Those of some test functions that were not skipped."""
    return [case for case in cases if case.outcome == "passed" and (not tests or case.test in tests)]


def numbers(cases: Iterable[Case], *names: str) -> list[list[float]]:
    """The recorded numbers of a case each, where it has them all."""
    return [[float(c.properties[n]) for n in names] for c in cases if all(n in c.properties for n in names)]


def counts(cases: Sequence[Case]) -> Figures:
    """How many cases each test function had."""
    return {"cases": dict(Counter(case.test for case in of(cases)))}


def bad_input(cases: Sequence[Case]) -> Figures:
    """Kinds by group: refused with the error that the table promises, working as promised, or not tried here."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        if case.test == "test_bad_input":
            what = "refused" if case.properties["refused"] == "1" else "works"
            groups[case.properties["group"]][what if case.outcome == "passed" else "not tried"] += 1
    rest = [case for case in of(cases) if case.test != "test_bad_input"]
    return {"groups": {group: dict(found) for group, found in groups.items()}, **counts(rest)}


def exchangeable(cases: Sequence[Case]) -> Figures:
    """Alarms among exchangeable normals, by the number of calibration images and the rate that was asked for."""
    rows: dict[tuple[int, float], Figures] = {}
    for case in of(cases, "test_the_false_alarm_rate_of_exchangeable_normals"):
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
    """The largest difference of a recipe's scores: alone, in batches, in another order."""
    found: dict[str, float] = {}
    for case in of(cases, "test_an_image_has_one_score"):
        name = case.properties["recipe"]
        found[name] = max(found.get(name, 0.0), float(case.properties["difference"]))
    return {"differences": found}


def kills(cases: Sequence[Case]) -> Figures:
    """SIGKILLs that were survived, by what was killed and where."""
    (training,) = of(cases, "test_killed_fifty_times_it_ends_as_if_it_had_not_been")
    places = {name: int(value) for name, value in training.properties.items() if name != "runs"}
    predicting = numbers(of(cases, "test_killed_at_any_moment_it_goes_on"), "kills", "difference")
    ((cell_kills, cells),) = numbers(of(cases, "test_killed_at_any_moment_each_cell_is_there_once"), "kills", "cells")
    return {
        "training": {"kills": sum(places.values()), "places": places, "runs": int(training.properties["runs"])},
        "predicting": {
            "kills": int(sum(k for k, _ in predicting)),
            "runs": len(predicting),
            "difference": max(difference for _, difference in predicting),
        },
        "benchmark": {"kills": int(cell_kills), "cells": int(cells)},
    }


def export(cases: Sequence[Case]) -> Figures:
    """The largest difference of a result by recipe and format: of small detectors, and of one on photographs."""
    tests = {
        "small": "test_a_recipe_has_its_own_numbers_after_export",
        "photographs": "test_a_pretrained_backbone_on_photographs",
    }
    found: Figures = {name: defaultdict(dict) for name in tests}
    for name, test in tests.items():
        for case in of(cases, test):
            for key, value in case.properties.items():
                if key != "recipe":
                    found[name][case.properties["recipe"]][key] = float(value)
    return {name: dict(rows) for name, rows in found.items()}


def processes(cases: Sequence[Case]) -> Figures:
    """The largest difference of a weight between one process and several, by case and number of them."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for case in of(cases, "test_processes_come_to_the_weights_of_one"):
        found[case.properties["case"]][case.properties["processes"]] = float(case.properties["difference"])
    return {"weights": dict(found), **counts(cases)}


PARTS = {
    "exchangeable": Part(("tests/detectors/test_conformal.py",), exchangeable),
    "same_score": Part(("tests/recipes/test_same_score.py",), same_score),
    "bad_input": Part(("tests/bad_input",), bad_input),
    "strangers": Part(
        ("tests/detectors/test_checkpoint_fuzz.py", "tests/app/export/test_export_broken_files.py"),
        counts,
    ),
    "kills": Part(
        (
            "tests/detectors/test_kill.py::test_killed_fifty_times_it_ends_as_if_it_had_not_been",
            "tests/app/cli/test_cli_restart.py::test_killed_at_any_moment_it_goes_on",
            "tests/benchmarks/test_reproduce_kill.py",
        ),
        kills,
    ),
    "disks": Part(
        (
            "tests/detectors/test_kill.py::test_a_file_that_may_not_grow_is_one_line_and_leaves_the_checkpoint",
            "tests/detectors/test_kill.py::test_what_cannot_be_written_is_named",
            "tests/app/cli/test_cli_restart.py::test_a_disk_that_is_full_at_any_file",
            "tests/app/cli/test_cli_restart.py::test_a_limit_of_the_system",
            "tests/app/cli/test_cli_restart.py::test_figures_that_cannot_be_written",
            "tests/app/cli/test_cli_restart.py::test_a_read_only_place_is_told_before_the_work",
        ),
        counts,
    ),
    "processes": Part(("tests/detectors/test_distributed.py", "tests/app/cli/test_cli_distributed.py"), processes),
    "export": Part(("tests/app/export/test_export_recipes.py",), export),
}
"""By name, the long ones last."""

BESIDE = {
    "arguments of public constructors and recipes: values of wrong types": (
        "test_values_of_a_wrong_type_are_refused_by_name",
    ),
    "numbers out of range for recipes": ("test_numbers_out_of_range_are_refused",),
    "random input to public functions, many examples a case": (
        "test_decoding_random_bytes", "test_decoding_mutated_files", "test_metrics_of_anything",
        "test_synthesis_of_any_size", "test_options_of_the_synthesis", "test_the_scorer_with_maps_of_any_shape",
        "test_a_detector_with_images_of_any_kind",
    ),
    "models: cut short, renamed, of other shapes, with headers that lie": ("test_a_spoiled_model_is_one_clear_line",),
    "models: random bytes, many examples a case": (
        "test_bytes_changed_anywhere_give_a_model_or_the_error", "test_any_bytes_are_no_model",
    ),
    "checkpoints of training": ("test_a_spoiled_checkpoint_of_training_too",),
    "configurations of runs": ("test_a_spoiled_config_is_one_clear_line",),
    "exported files: cut short, empty, text, noise, of others": (
        "test_truncated_empty_text_and_noise", "test_openvino_without_its_weights",
        "test_models_of_others_and_of_other_versions", "test_a_run_directory_is_no_exported_file",
    ),
    "exported files that bring code": ("test_nothing_in_an_archive_is_unpickled_or_run",),
    "disks in training: full, read-only, files that may not grow": (
        "test_a_file_that_may_not_grow_is_one_line_and_leaves_the_checkpoint", "test_what_cannot_be_written_is_named",
    ),
    "disks in predict and evaluate: the same": (
        "test_a_disk_that_is_full_at_any_file", "test_a_limit_of_the_system", "test_figures_that_cannot_be_written",
        "test_a_read_only_place_is_told_before_the_work",
    ),
}  # fmt: skip
"""Test functions by what they spoil."""
