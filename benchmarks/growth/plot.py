"""Plots of `benchmarks.growth`: seconds and memory over one size, on logarithmic axes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..shared.plots import BEST, OURS, require_matplotlib, save

KINDS = {"train": ("training", OURS, "o", "-"), "infer": ("inference", BEST, "s", "--")}


def draw(axis: str, curves: Mapping[str, Any], folder: Path) -> Path:
    """Write FOLDER/AXIS.png."""
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    points = curves["points"]
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    for panel, (unit, name) in zip(figure.subplots(1, 2), {"s": "CPU seconds", "mib": "MiB"}.items(), strict=True):
        for kind, (label, color, marker, style) in KINDS.items():
            what = f"{kind}_{unit}"
            if what in points[0]:
                slope = curves["exponents"][what]
                values = [max(point[what], 1e-9) for point in points]
                panel.plot(
                    [point[axis] for point in points], values, style, marker=marker, color=color, markersize=5,
                    label=f"{label}, exponent {slope:.2f}",
                )  # fmt: skip
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks([point[axis] for point in points], [f"{point[axis]:g}" for point in points], minor=False)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_xlabel(curves["label"])
        panel.set_title(name, loc="left", fontsize=10)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    return save(figure, folder / f"{axis}.png", dpi=100)
