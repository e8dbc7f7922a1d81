"""Markdown tables of the figures, and their places on the pages."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from ..shared.figures import markdown_table, spread, text_of
from ..shared.record import ROOT
from .parts import MODULES

PAGES = (ROOT / "benchmarks" / "results" / "trust.md",)
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
FORMATS = {"torch": "torch.export", "onnx": "ONNX Runtime", "openvino": "OpenVINO (f32)"}
EXPORTED = {"small": "random weights", "photographs": "EfficientNet-Lite0, photographs of screws"}
Parts = Mapping[str, Mapping[str, Any]]


def filled(text: str, parts: Parts) -> str:
    """Return a page with new tables between its markers."""

    def table_of(match: re.Match[str]) -> str:
        try:
            made = TABLES[match["name"]](parts)
        except KeyError as error:
            made = f"Not counted yet: {error.args[0]}."
        return f"<!-- figures: {match['name']} -->\n\n{made}\n\n<!-- end -->"

    return re.sub(r"<!-- figures: (?P<name>\w+) -->\n.*?<!-- end -->", table_of, text, flags=re.DOTALL)


def false_alarms(parts: Parts) -> str:
    """Return the false alarms on real images at the lowest rate of each data set."""
    rows = []
    for name, seeds in real(parts):
        rate, first = min(seeds[0]["held_out"].items(), key=lambda item: float(item[0]))
        found = [seed["held_out"][rate] for seed in seeds]
        rows.append(
            [
                f"{name}, {seeds[0]['calibration_images']}",
                percent(float(rate)),
                str(first["of"]),
                f"{first['expected'][0]} to {first['expected'][1]}",
                listed(x["false_alarms"] for x in found),
                listed(x["false_masks"] for x in found),
                percent(fmean(x["detection_rate"] for x in found)),
            ]
        )
    header = ["data, calibration images", "rate, %", "good test images", "expected alarms", "alarms", "masks"]
    return markdown_table([*header, "defects found, %"], rows)


def holding_out(parts: Parts) -> str:
    """Return the metrics with a fifth held out, and the difference to training on all images."""
    rows = []
    for name, seeds in real(parts):
        for metric, title in METRICS.items() if "whole" in seeds[0] else ():
            pairs = [(100 * seed["whole"][metric], 100 * seed["metrics"][metric]) for seed in seeds]
            means = (f"{fmean(pair[k] for pair in pairs):.1f}" for k in (0, 1))
            difference = spread({k: held - whole for k, (whole, held) in enumerate(pairs)})
            rows.append([name, title, *means, text_of(difference, 1, signed=True)])
    return markdown_table(["data", "metric, %", "trained on all", "a fifth held out", "difference by seed"], rows)


def exchangeable(parts: Parts) -> str:
    """Return the simulated rates, one row for each number of images and rate."""
    found = parts["exchangeable"]["figures"]["rows"]
    rows = [
        [
            *(str(row["images"]), percent(row["rate"]), percent(row["exact"])),
            "–".join(percent(x) for x in row["bounds"]),
            *(percent(rate) for rate in row["seen"].values()),
        ]
        for row in found
    ]
    header = ["images", "requested", "exact without ties", "limits"]
    return markdown_table([*header, *found[0]["seen"]], rows)


def differences(parts: Parts) -> str:
    """Return the largest differences by recipe: in any batch, and after export."""
    alone = parts["same_score"]["figures"]["differences"]
    rows = [
        [
            recipe if kind == "small" else f"{recipe}, {kind}",
            f"{alone[recipe]:.1e}" if kind == "small" and recipe in alone else "",
            *(f"{found[name]:.1e}" if name in found else "" for name in FORMATS),
        ]
        for kind, recipes in parts["export"]["figures"].items()
        for recipe, found in recipes.items()
    ]
    return markdown_table(["recipe", "score in any batch", *FORMATS.values()], rows)


def broken(parts: Parts) -> str:
    """Return the number of tests of invalid input by subject."""
    rows = [[label, str(tests(parts, module))] for module, label in MODULES.items()]
    return markdown_table(["input", "tests passed"], rows)


def summary(parts: Parts) -> str:
    """Return one row for each promise."""
    figures = {name: part.get("figures", {}) for name, part in parts.items()}
    simulated = [(row["bounds"][1], rate) for row in figures["exchangeable"]["rows"] for rate in row["seen"].values()]
    within = sum(rate <= limit for limit, rate in simulated)
    groups = figures["bad_input"]["groups"].values()
    kinds = {what: sum(group.get(what, 0) for group in groups) for what in ("rejected", "valid", "not tested")}
    kills, weights = figures["kills"], figures["processes"]["weights"].values()
    exported = [
        [f"exported results, {EXPORTED[kind]}", "difference at most 1e-4", largest(recipes)]
        for kind, recipes in figures["export"].items()
    ]
    rows = [
        [
            "false alarms of exchangeable normal images",
            "at most the requested rate",
            f"{within} of {len(simulated)} cases of {figures['exchangeable']['trials']:,} trials",
        ],
        [
            "score of an image, in any batch and order",
            "difference at most 1e-6",
            f"{max(figures['same_score']['differences'].values()):.1e}",
        ],
        *exported,
        [
            "kinds of unusual or invalid input",
            "a documented result or a one-line error",
            f"{sum(kinds.values())} kinds: {listed(f'{n} {what}' for what, n in kinds.items() if n)}",
        ],
        [
            "training killed (SIGKILL) and resumed",
            "the same bytes as without kills",
            f"{kills['training']['kills']} kills in {kills['training']['runs']} complete runs, the same bytes",
        ],
        [
            "`semflow predict` killed and repeated",
            "each output once and complete",
            f"{kills['predicting']['kills']} kills in {kills['predicting']['runs']} folders, all complete",
        ],
        [
            "benchmark killed and repeated",
            "each cell once, the same figures",
            f"{kills['benchmark']['kills']} kills, {kills['benchmark']['cells']} cells, the same figures",
        ],
        [
            "full disks, quotas, read-only folders, restarts",
            "a one-line error, no incomplete file",
            f"{tests(parts, 'test_kill') + tests(parts, 'test_cli_restart')} tests passed",
        ],
        [
            "weights of several processes and of one, after two epochs of small detectors",
            "difference at most 1e-5",
            f"{max(value for case in weights for value in case.values()):.1e}",
        ],
    ]
    return markdown_table(["promise", "limit", "measured"], rows)


def made(parts: Parts) -> str:
    """Return command, commits and number of tests of the parts, grouped by command, and the machine."""
    rows: dict[str, tuple[list[str], set[str], Counter[str]]] = {}
    for name, part in parts.items():
        names, commits, outcomes = rows.setdefault(part["command"], ([], set(), Counter()))
        names.append(name)
        entries = [entry for seeds in part.get("results", {}).values() for entry in seeds.values()]
        commits |= {part["commit"], *(entry[key] for entry in entries for key in entry if key.endswith("commit"))}
        outcomes.update(passed=part.get("passed", 0), skipped=sum(part.get("skipped", {}).values()))
    machines = dict.fromkeys(
        f"{part['machine']}; {listed(f'{k} {v}' for k, v in part['versions'].items())}" for part in parts.values()
    )
    table = [
        [
            listed(names),
            f"`{command}`",
            listed(sorted(commits)),
            listed(f"{n} {what}" for what, n in outcomes.items() if n),
        ]
        for command, (names, commits, outcomes) in rows.items()
    ]
    return f"{markdown_table(['figures', 'command', 'commits', 'tests'], table)}\n\n{listed(machines)}."


TABLES: dict[str, Callable[[Parts], str]] = {
    table.__name__: table for table in (summary, false_alarms, holding_out, exchangeable, differences, broken, made)
}


def real(parts: Parts) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the data sets, and the figures of each by seed."""
    return [(name, list(seeds.values())) for name, seeds in parts["real"]["results"].items()]


def tests(parts: Parts, module: str) -> int:
    """Return the number of passed tests of a module."""
    return sum(sum(p.get("figures", {}).get("cases", {}).get(module, {}).values()) for p in parts.values())


def largest(recipes: Mapping[str, Mapping[str, float]]) -> str:
    """Return the largest difference of each format."""
    found = {title: [row[name] for row in recipes.values() if name in row] for name, title in FORMATS.items()}
    return listed(f"{title} {max(values):.1e}" for title, values in found.items() if values)


def percent(x: float) -> str:
    """Return a fraction in percent, without the sign."""
    return f"{100 * x:.3g}"


def listed(values: Iterable[object]) -> str:
    """Return values separated by commas."""
    return ", ".join(map(str, values))


def write(pages: Iterable[Path], parts: Parts) -> None:
    """Write the tables into the pages."""
    for page in pages:
        page.write_text(filled(page.read_text(encoding="utf-8"), parts), encoding="utf-8")
