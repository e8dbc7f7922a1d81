"""The report of the comparison: figures, and how the added statistics change them, seed by seed."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..shared.figures import markdown_table, mean_per_seed, spread, text_of
from ..shared.store import Kept, Key
from .flows import LIBRARIES
from .model import VARIANTS

METRICS = {
    "log_likelihood": ("log p", 1, 3),
    "image_auroc": ("image AUROC", 100, 1),
    "pixel_auroc": ("pixel AUROC", 100, 1),
    "aupro": ("AUPRO", 100, 1),
    "image_auroc_log_det": ("image AUROC, log-det", 100, 1),
    "pixel_auroc_log_det": ("pixel AUROC, log-det", 100, 1),
    "aupro_log_det": ("AUPRO, log-det", 100, 1),
}
"""Heading, factor (for percent) and digits of each metric."""
SETUP = ("backbone", "weights", "strides", "image_size", "steps", "batch_size", "learning_rate", "mode")


def summarize(kept: Sequence[Kept], planned: Sequence[Key], command: Sequence[str]) -> dict[str, Any]:
    """Return the report as plain data: metrics by category and their mean over the categories.

    A figure is mean and standard deviation over the seeds of the mean over the categories; a change is the difference
    to `own`, taken seed by seed.

    Args:
        kept: finished cells.
        planned: all cells of the run; empty for those of `kept`.
        command: for the record.
    """
    keys = list(planned) or [Key(cell["row"], cell["category"], cell["seed"]) for cell in kept]
    pairs = list(dict.fromkeys(tuple(key.row.split(" ")) for key in keys))
    libraries = dict.fromkeys(library for library, _ in pairs)
    names = list(dict.fromkeys(key.category for key in keys))
    rows = []
    for library, variant in sorted(pairs, key=lambda pair: list(libraries).index(pair[0])):
        figures = {where: _figures(kept, library, variant, of) for where, of in _places(names)}
        rows.append({"library": library, "variant": variant, "event": LIBRARIES[library].event, "figures": figures})
    versions = {name: version for cell in kept for name, version in cell["record"]["versions"].items()}
    return {
        "title": "Flows of other libraries with predicted statistics",
        "setup": {name: kept[0]["settings"][name] for name in SETUP} if kept else {},
        "categories": names,
        "seeds": sorted({key.seed for key in keys}),
        "flows": {library: LIBRARIES[library].text for library in libraries},
        "variants": {variant: VARIANTS[variant] for _, variant in pairs},
        "rows": rows,
        "done": len(kept),
        "planned": len(keys),
        "disagreement": max((cell["result"]["disagreement"] for cell in kept), default=None),
        "train_cpu_seconds": math.fsum(cell["result"]["train_cpu_seconds"] for cell in kept),  # in any order
        "provenance": {
            "command": shlex.join(command),
            "commits": sorted({cell["record"]["commit"] for cell in kept}),
            "versions": versions,
            "machine": " or ".join(dict.fromkeys(cell["record"]["machine"] for cell in kept)),
        },
    }


def _places(names: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    return [*([("mean", names)] if len(names) > 1 else []), *((name, [name]) for name in names)]


def _figures(kept: Sequence[Kept], library: str, variant: str, names: Sequence[str]) -> dict[str, Any]:
    found = {}
    for metric in METRICS:
        mine, own = (
            mean_per_seed(
                {
                    (cell["category"], cell["seed"]): value
                    for cell in kept
                    if cell["row"] == f"{library} {one}" and (value := cell["result"]["metrics"][metric]) is not None
                },
                names,
            )
            for one in (variant, "own")
        )
        change = {seed: mine[seed] - own[seed] for seed in mine if seed in own}
        found[metric] = {"value": spread(mine), "change": None if variant == "own" else spread(change)}
    return found


def to_markdown(summary: Mapping[str, Any]) -> str:
    """Return the report: setup, changes, figures and provenance."""
    setup, made = summary["setup"], summary["provenance"]
    parts = [f"# {summary['title']}"]
    if setup:
        parts.append(
            f"{setup['backbone']} ({setup['weights']} weights), strides {', '.join(map(str, setup['strides']))}, "
            f"{setup['image_size']} px, standardized channels; {setup['steps']} steps of {setup['batch_size']} images, "
            f"Adam from {setup['learning_rate']:g} with a cosine decay; added bases start at variance "
            f"{setup['mode']:g}; {', '.join(summary['categories'])}; seeds {', '.join(map(str, summary['seeds']))}; "
            "the model of the last step. ± is the standard deviation over the seeds."
        )
    if summary["done"] < summary["planned"]:
        parts.append(
            f"**Unfinished: {summary['done']} of {summary['planned']} cells.** A dash is a missing figure; a figure of "
            "some seeds only names them."
        )
    parts.append("\n".join(f"- *{name}*: {text}" for name, text in summary["variants"].items()))
    parts.append("\n".join(f"- **{name}**: {text}" for name, text in summary["flows"].items()))
    parts.append(
        "*log p* is that of normal test images, in nats per dimension of the standardized features, with the variance "
        "integrated out. **With a predicted variance it is not a density of the features**, because the variance is "
        "predicted from the same features. Scores are of the latents; those marked *log-det* are of the features, and "
        "only flows of vectors have them. An image's score is the mean of the highest 1 % of its map."
    )
    kinds = [("change", "Change against *own*"), ("value", "Figures")]
    for what, title in kinds if "own" in summary["variants"] else kinds[1:]:
        for where, of in _places(summary["categories"]):
            place = of[0] if len(of) == 1 else "mean over the categories"
            parts += [f"## {title}, {place}", _table(summary, where, what)]
    worst = "-" if summary["disagreement"] is None else f"{summary['disagreement']:.1e}"
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    parts += [
        "## How it was made",
        f"- `{made['command']}`\n"
        f"- cells of commit {', '.join(made['commits'])}; {versions}\n"
        f"- {made['machine']}; training took {summary['train_cpu_seconds']:.0f} CPU-seconds in all\n"
        f"- largest difference of log p on a standard normal between library and semflow: {worst} per dimension\n"
        "- the command of each cell is in `cells.jsonl`",
    ]
    return "\n\n".join(parts) + "\n"


def excerpt(summary: Mapping[str, Any]) -> str:
    """Return the table of the documentation: changes by the predicted variance, means over the categories."""
    where, shown = _places(summary["categories"])[0][0], [m for m in METRICS if not m.endswith("_log_det")]
    lines = [
        [row["library"], f'`"{row["event"]}"`', *(_number(row, where, m, "change", summary["seeds"]) for m in shown)]
        for row in summary["rows"]
        if row["variant"] == "predicted"
    ]
    return markdown_table(["flow of", "event", *(METRICS[m][0] for m in shown)], lines)


def _table(summary: Mapping[str, Any], where: str, what: str) -> str:
    rows = [
        [row["library"], row["variant"], *(_number(row, where, m, what, summary["seeds"]) for m in METRICS)]
        for row in summary["rows"]
        if what == "value" or row["variant"] != "own"
    ]
    return markdown_table(["flow of", "base", *(heading for heading, _, _ in METRICS.values())], rows)


def _number(row: Mapping[str, Any], where: str, metric: str, what: str, seeds: Sequence[int]) -> str:
    found = row["figures"][where][metric][what]
    _, factor, digits = METRICS[metric]
    some = f" (seed {', '.join(map(str, found['seeds']))})" if found and found["seeds"] != sorted(seeds) else ""
    return text_of(found, digits, what == "change", factor) + some
