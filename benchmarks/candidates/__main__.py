"""Measure ideas of published methods, each against the same flow without it.

    python -m benchmarks.candidates --data five --seeds 0 1 2 --json benchmarks/results/candidates.json

Images of 128 px, features of EfficientNet-Lite0 (packaged weights) at strides 8, 16 and 32. All rows have the couplings
of the recipe `sanflow` with half of its blocks, its optimizer and score, and one training loop; BCE and boundary have
synthetic anomalies in half of each batch, and TarFlow has a transformer in the place of the couplings. A model of one
category is trained for a number of steps of 8 images, and a model of several for as many as all of these together.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..calibration import begun
from ..shared.figures import markdown_table, spread, text_of
from ..shared.record import provenance, write_json

SIZE, STEPS = 128, 100
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
KINDS = ("separate", "joint", "joint, told", "left out")
PLAIN = "CFLOW-AD"
LONGER, TIMES = "CFLOW-AD, longer", 6  # as many times the steps as cost what TarFlow's cost
ROWS: dict[str, tuple[str, ...]] = {
    PLAIN: ("separate", "joint"),
    LONGER: ("separate",),
    "HGAD 0.05": ("joint",),
    "HGAD 1": ("joint",),
    "HGAD 100": ("joint",),
    "VQ-Flow": ("separate", "joint"),
    "U-Flow": ("separate",),
    "TarFlow": ("separate", "joint"),
    "BCE": ("separate",),
    "BCE, Poisson": ("separate",),
    "boundary": ("separate",),
    "boundary, Poisson": ("separate",),
    "residuals": ("joint", "joint, told", "left out"),
    "residuals, no flow": ("joint", "joint, told"),
}
"""Kinds of models of each row; the numbers are weights of HGAD's mutual information."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.candidates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each category")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of models")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="for each category")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(words)
    about = provenance(["python", "-m", "benchmarks.candidates", *(sys.argv[1:] if words is None else words)])
    about |= {"image_size": SIZE, "epochs": f"{options.steps} steps"}
    found = begun(options.json, about)
    kinds = {row: [kind for kind in ROWS[row] if kind in options.kinds] for row in options.rows}
    wanted = [(seed, row, kind) for seed in options.seeds for row in options.rows for kind in kinds[row]]
    missing = [cell for cell in wanted if str(cell[0]) not in found.get(cell[1], {}).get(cell[2], {})]
    if missing:
        from .training import measure, read

        channels, train, test = read(options.data, SIZE)
        for seed, row, kind in missing:
            steps = options.steps * (TIMES if row == LONGER else 1)
            cell = measure(builder(row, channels, len(train)), kind, train, test, steps, seed)
            found.setdefault(row, {}).setdefault(kind, {})[str(seed)] = {"commit": about["commit"], **cell}
            print(json.dumps({row: {kind: {seed: cell}}}), flush=True)
            if options.json is not None:
                write_json(options.json, {**about, "results": found})
    print(table(found))
    return 0


def builder(row: str, channels: Sequence[int], classes: int) -> Callable[[], Any]:
    """Return a function that builds the untrained model of a row."""
    from .hgad import MixtureFlow
    from .plain import PlainFlow
    from .residuals import ResidualFlow, ResidualGaussian
    from .synthetic import OBJECTIVES, SyntheticFlow
    from .tarflow import TransformerFlow
    from .uflow import UShapedFlow
    from .vqflow import CodebookFlow

    if row.startswith("HGAD "):
        return lambda: MixtureFlow(channels, classes, float(row.removeprefix("HGAD ")))
    term, _, kind = row.partition(", ")
    if term in OBJECTIVES:
        return lambda: SyntheticFlow(channels, term, kind or "CutPaste")
    kinds: dict[str, Any] = {PLAIN: PlainFlow, LONGER: PlainFlow, "VQ-Flow": CodebookFlow, "U-Flow": UShapedFlow}
    kinds["TarFlow"] = TransformerFlow
    kinds |= {"residuals": ResidualFlow, "residuals, no flow": ResidualGaussian}
    return lambda: kinds[row](channels)


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the means over the categories, metrics in percent with their differences to the plain flow by seed.

    NLL is that of good test images in nats per dimension of the features; the CPU time is that of training and scoring.
    """
    rows = []
    for row, kinds in results.items():
        for kind, cells in kinds.items():
            plain = results.get(PLAIN, {}).get(kind if kind == "separate" else "joint", {})
            texts = []
            for metric in METRICS:
                own, base = (means(x, metric) for x in (cells, plain))
                texts.append(text_of(spread(own), 1, factor=100))
                if row != PLAIN:
                    less = spread({seed: value - base[seed] for seed, value in own.items() if seed in base})
                    texts[-1] += f" ({text_of(less, 1, signed=True, factor=100)})"
            texts.append(text_of(spread(means(cells, "nll"))))
            seconds = statistics.median(cell["seconds"] for cell in cells.values())
            rows.append([row, kind, str(len(cells)), *texts, f"{seconds:.0f} s"])
    return markdown_table(["method", "models", "seeds", *METRICS.values(), "NLL", "CPU time"], rows)


def means(cells: Mapping[str, Any], metric: str) -> dict[int, float]:
    """Return the mean of a metric over the categories, by seed."""
    return {
        int(seed): statistics.fmean(found[metric] for found in cell["categories"].values())
        for seed, cell in cells.items()
    }


if __name__ == "__main__":
    sys.exit(main())
