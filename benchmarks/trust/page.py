"""The figures of trust as Markdown, and where on a page they stand."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..shared.record import ROOT
from .parts import BESIDE

__all__ = ["PAGES", "TABLES", "filled"]

PAGES = (ROOT / "docs" / "trust.md", ROOT / "docs" / "calibration.md")
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
Parts = Mapping[str, Mapping[str, Any]]


def filled(text: str, parts: Parts) -> str:
    """A page with every table between its markers made anew from the figures of the parts."""

    def table_of(match: re.Match[str]) -> str:
        name = match["name"]
        try:
            text = TABLES[name](parts)
        except KeyError as error:
            text = f"Not counted yet: {error.args[0]}."
        return f"<!-- figures: {name} -->\n\n{text}\n\n<!-- end -->"

    return re.sub(r"<!-- figures: (?P<name>\w+) -->\n.*?<!-- end -->", table_of, text, flags=re.DOTALL)


def false_alarms(parts: Parts) -> str:
    """Of real good images: a row for each data set and rate, the seeds beside each other."""
    rows = []
    for name, seeds in real(parts):
        for rate, first in seeds[0]["held_out"].items():
            of = first["of"]
            held, trained = ([seed[kind][rate] for seed in seeds] for kind in ("held_out", "trained_on"))
            rows.append(
                [
                    f"{name}, {seeds[0]['calibration_images']} held out",
                    percent(float(rate)),
                    str(of),
                    f"{first['expected'][0]} to {first['expected'][1]}",
                    listed(x["false_alarms"] for x in held),
                    listed(x["false_masks"] for x in held),
                    listed(x["false_alarms"] for x in trained),
                    percent(fmean(x["detection_rate"] for x in held)),
                ]
            )
    header = ["data", "rate asked", "good test images", "to be expected", "called anomalous", "with a mask"]
    return table([*header, "calibrated on training images", "defects found"], rows)


def dealt(parts: Parts) -> str:
    """Good test images against each other: exchangeable, whatever they are."""
    rows = []
    for name, seeds in real(parts):
        for rate in seeds[0]["resampled"]["image"]:
            found = [[seed["resampled"][what][rate] for seed in seeds] for what in ("image", "mask")]
            seen = [", ".join(percent(x["rate"]) for x in side) for side in found]
            rows.append([name, percent(float(rate)), percent(found[0][0]["exact"]), *seen])
    return table(["data", "rate asked", "exact", "called anomalous", "with a mask"], rows)


def holding_out(parts: Parts) -> str:
    """Metrics with a fifth held out, and the difference to training on all, seed by seed."""
    rows = []
    for name, seeds in real(parts):
        if "whole" not in seeds[0]:
            continue
        for metric, title in METRICS.items():
            pairs = [(seed["whole"][metric], seed["metrics"][metric]) for seed in seeds]
            rows.append(
                [
                    name,
                    title,
                    *(f"{100 * fmean(pair[i] for pair in pairs):.1f}" for i in (0, 1)),
                    spread([100 * (held - whole) for whole, held in pairs]),
                ]
            )
    return table(["data", "metric, %", "trained on all", "a fifth held out", "difference by seed"], rows)


def exchangeable(parts: Parts) -> str:
    """The simulation, a row for each number of images and rate."""
    found = parts["exchangeable"]["figures"]
    rows = [
        [
            str(row["images"]),
            percent(row["rate"]),
            percent(row["exact"]),
            " to ".join(percent(x) for x in row["bounds"]),
            *(percent(rate) for rate in row["seen"].values()),
        ]
        for row in found["rows"]
    ]
    kinds = found["rows"][0]["seen"]
    return table(["images", "rate asked", "exact without ties", "bounds", *(f"seen, {kind}" for kind in kinds)], rows)


def summary(parts: Parts) -> str:
    """A line for each promise."""
    figures = {name: part.get("figures", {}) for name, part in parts.items()}
    simulated = [row for row in figures["exchangeable"]["rows"] for _ in row["seen"]]
    above = sum(rate > row["bounds"][1] for row in figures["exchangeable"]["rows"] for rate in row["seen"].values())
    one = max(figures["same_score"]["differences"].values())
    kinds = [sum(group.get(w, 0) for group in figures["bad_input"]["groups"].values()) for w in WHAT]
    kills, written = figures["kills"], sum(figures["disks"]["cases"].values())
    weights = {
        count: max(case[count] for case in figures["processes"]["weights"].values())
        for count in sorted({count for case in figures["processes"]["weights"].values() for count in case})
    }
    exported = {name: largest(rows) for name, rows in figures["export"].items() if rows}
    rows = [
        [
            "false alarms of exchangeable normals",
            "at most the rate, within binomial bounds",
            f"{len(simulated) - above} of {len(simulated)} cases of {figures['exchangeable']['trials']:,} trials",
        ],
        ["one image, one score, in any batch and order", "1e-6 of the score, or of one nat", f"{one:.1e}"],
        *(
            [f"exported, {EXPORTED[name]}", "1e-4, the same", ", ".join(f"{f} {x:.1e}" for f, x in found.items())]
            for name, found in exported.items()
        ),
        [
            "kinds of bad input",
            "60, each with its own one-line error",
            f"{sum(kinds)}: {kinds[0]} refused, {kinds[1]} work as they should, {kinds[2]} not tried here",
        ],
        [
            "SIGKILL in training, 50 random moments",
            "ends in the same bytes",
            f"{kills['training']['kills']} kills, {kills['training']['runs']} runs to their end: the same bytes",
        ],
        [
            "SIGKILL of `semflow predict`",
            "each output once and whole",
            f"{kills['predicting']['kills']} kills in {kills['predicting']['runs']} folders, all whole; largest "
            f"difference of a score {kills['predicting']['difference']:.1e}",
        ],
        [
            "SIGKILL of a benchmark's table",
            "each cell once, the same figures",
            f"{kills['benchmark']['kills']} kills, {kills['benchmark']['cells']} cells, the same figures",
        ],
        ["full disks, quotas and read-only places", "one line, nothing half-written", f"{written} of {written} cases"],
        *(
            [f"weights of {count} processes against one", "1e-5", f"{difference:.1e}"]
            for count, difference in weights.items()
        ),
    ]
    return table(["what", "asked", "seen"], rows)


def export(parts: Parts) -> str:
    """Differences by recipe and format."""
    rows = []
    for name, recipes in parts["export"]["figures"].items():
        for recipe, found in recipes.items():
            rows.append([recipe, EXPORTED[name], *(f"{found[f]:.1e}" if f in found else "-" for f in FORMATS)])
    return table(["recipe", "", *FORMATS.values()], rows)


def same_score(parts: Parts) -> str:
    """The largest difference by recipe."""
    found = parts["same_score"]["figures"]["differences"]
    return table(["recipe", "largest difference of a score"], [[name, f"{x:.1e}"] for name, x in found.items()])


def bad_input(parts: Parts) -> str:
    """Kinds by group, and what was tried beside the table."""
    found = parts["bad_input"]["figures"]
    rows = [[group, *(str(tried.get(what, 0)) for what in WHAT)] for group, tried in found["groups"].items()]
    return table(["kinds of bad input", *WHAT], rows)


def beside(parts: Parts) -> str:
    """What was tried beside the table of bad input: cases by what they spoil."""
    cases: dict[str, int] = {}
    for part in ("bad_input", "strangers", "disks"):
        cases |= parts[part]["figures"]["cases"]
    rows = [[label, str(sum(cases.get(name, 0) for name in names))] for label, names in BESIDE.items()]
    return table(["what was spoiled", "cases, all refused or right"], rows)


def killed(parts: Parts) -> str:
    """Kills in training by place."""
    places = parts["kills"]["figures"]["training"]["places"]
    return table(["training was killed", "times"], [[place, str(count)] for place, count in places.items()])


def processes(parts: Parts) -> str:
    """Differences of weights by case."""
    found = parts["processes"]["figures"]["weights"]
    numbers = sorted({count for case in found.values() for count in case})
    rows = [[case, *(f"{values[n]:.1e}" for n in numbers)] for case, values in found.items()]
    return table(["training", *(f"{count} processes" for count in numbers)], rows)


def made(parts: Parts) -> str:
    """Command, commit, time and tests of each part; machine and versions once for all parts that share them."""
    rows, places = [], defaultdict(list)
    for name, part in parts.items():
        entries = [entry for seeds in part.get("results", {}).values() for entry in seeds.values()]
        commits = {part["commit"], *(entry[key] for entry in entries for key in entry if key.endswith("commit"))}
        rows.append(
            [
                name,
                f"`{part['command']}`",
                listed(sorted(commits)),
                f"{part['seconds']:,.0f}" if "seconds" in part else "-",
                f"{part['passed']}, {sum(part['skipped'].values())} skipped" if "passed" in part else "-",
            ]
        )
        places[f"{part['machine']}; {listed(f'{k} {v}' for k, v in part['versions'].items())}"].append(name)
    lines = [f"- {listed(names) if len(places) > 1 else 'all'}: {place}" for place, names in places.items()]
    reasons = sorted({reason for part in parts.values() for reason in part.get("skipped", {})})
    lines += [f"- skipped: {reason}" for reason in reasons]
    return table(["figures", "command", "commit", "s", "tests passed"], rows) + "\n\n" + "\n".join(lines)


WHAT = ("refused", "works", "not tried")
EXPORTED = {"small": "small, perturbed weights", "photographs": "EfficientNet-Lite0 at 256 px, screw's test images"}
FORMATS = {"torch": "torch.export", "onnx": "ONNX Runtime", "openvino": "OpenVINO, f32"}
TABLES: dict[str, Callable[[Parts], str]] = {
    f.__name__: f
    for f in (
        summary, false_alarms, dealt, holding_out, exchangeable, same_score, export, bad_input, beside, killed,
        processes, made,
    )
}  # fmt: skip


def real(parts: Parts) -> list[tuple[str, list[dict[str, Any]]]]:
    """The data sets, and what was measured of each with each seed."""
    return [(name, list(seeds.values())) for name, seeds in parts["real"]["results"].items()]


def largest(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of all recipes, by the format's name."""
    seen = {title: [found[f] for found in rows.values() if f in found] for f, title in FORMATS.items()}
    return {title: max(values) for title, values in seen.items() if values}


def percent(x: float) -> str:
    return f"{100 * x:.3g} %"


def listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):+.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def write(pages: Iterable[Path], parts: Parts) -> None:
    for page in pages:
        page.write_text(filled(page.read_text(encoding="utf-8"), parts), encoding="utf-8")
