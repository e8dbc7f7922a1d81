"""The report over all parts, in Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .parts import PARTS
from .record import read


class Target(NamedTuple):
    """A figure of a part that is to be at least or at most a value."""

    name: str
    part: str
    figure: str
    value: float
    at_least: bool = True


TARGETS = (
    Target("largest error of a score in float32, in standard deviations", "scores", "score_error", 1e-3, False),
    Target("SANFlow, WRN-50, 256 px: images per second", "inference", "images_per_s", 1500),
    Target("inference: time of the published formulation over ours", "inference", "inference_ratio", 10),
    Target("training step: time of the published formulation over ours", "training", "training_ratio", 4),
    Target("80 epochs of 320 images in batches of 32: seconds", "screw", "epochs_80_s, batch 32", 60, False),
    Target("80 epochs of 320 images in batches of 4, the default: seconds", "screw", "epochs_80_s, batch 4", 60, False),
    Target("coreset of 327,680 x 1,536 to 10 %: seconds", "memory", "coreset_s", 20, False),
)
HEAD = ("device", "memory_gib", "driver", "cuda", "cudnn", "cudnn_tf32", "commit", "machine", "versions", "command")


def verdict(target: Target, value: float | None) -> str:
    """Return whether a target is reached.

    >>> verdict(TARGETS[1], 1600.0), verdict(TARGETS[-1], 30.0), verdict(TARGETS[1], None)
    ('reached', 'missed', 'not measured')
    """
    if value is None:
        return "not measured"
    return "reached" if (value >= target.value if target.at_least else value <= target.value) else "missed"


def report(folder: Path) -> str:
    """Return the report on the files of a folder."""
    parts = {name: read(folder / f"{name}.json") for name in PARTS}
    lines = ["# Measurements on a GPU", ""]
    if any(part.get("rehearsal") for part in parts.values()):
        lines += ["**A rehearsal on the CPU at tiny sizes: the figures mean nothing.**", ""]
    lines += ["| target | | measured | |", "|---|---|---|---|"]
    for target in TARGETS:
        value = parts[target.part].get("figures", {}).get(target.figure)
        sign, shown = "at least" if target.at_least else "at most", "" if value is None else f"{value:g}"
        told = "rehearsal" if parts[target.part].get("rehearsal") else verdict(target, value)
        lines.append(f"| {target.name} | {sign} {target.value:g} | {shown} | {told} |")
    for name, part in PARTS.items():
        lines += ["", f"## {part.title}", "", *_part(name, parts[name])]
    return "\n".join(lines) + "\n"


def _part(name: str, found: Mapping[str, Any]) -> list[str]:
    if not found:
        return ["Not run."]
    lines = [
        f"`{name}.json`: {found.get('status')}" + (f", {found['reason']}" if found.get("reason") else "") + ".",
        "",
    ]
    lines += [f"- {key}: {_shown(found[key])}" for key in HEAD if found.get(key) not in (None, "")]
    rows = found.get("rows", [])
    if name == "tests":  # only those that tell something
        rows = [row for row in rows if row.get("outcome") != "passed"]
    lines += ["", *(f"- {row['what']}: {_shown({k: v for k, v in row.items() if k != 'what'})}" for row in rows)]
    lines += [f"- {x['what']}: skipped, {_first_line(x['reason'])}" for x in found.get("skipped", [])]
    lines += [f"- **{x['what']}: {_first_line(x['error'])}**" for x in found.get("failed", [])]
    for title, text in found.get("texts", {}).items():
        lines += ["", f"### {title}", "", "```", text, "```"]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_first_line(entry)}" for key, entry in value.items())
    return str(value)


def _first_line(value: Any) -> str:
    lines = str(value).strip().splitlines()
    return lines[-1][:300] if lines else ""
