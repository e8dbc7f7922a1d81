"""Measure what one model for several categories loses against one model for each.

    python -m benchmarks.joint --data five --json benchmarks/results/joint.json

Images of 128 px, features of EfficientNet-Lite0 (packaged weights). A model of one category is trained for 160 steps of
8 images, and the joint model for as many as all of these together. `joint` stores as many vectors as the memories of
all models together, and `joint, one memory` as many as that of one model. Each category is tested alone, and the joint
model is not told which one it is.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .calibration import begun
from .shared.figures import markdown_table, spread, text_of
from .shared.record import provenance, write_json

SIZE, STEPS = 128, 160
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
STORED = 6000  # vectors of memory_flow, and the share of PatchCore
SHARE = 0.1
FLOWS = {"couplings.position_channels": 128}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "PatchCore": ("patchcore", {"backbone.strides": (8, 16)}),
    "PaDiM": ("padim", {"backbone.strides": (4, 8, 16)}),
    "memory_flow": ("memory_flow", {"backbone.strides": (4, 8, 16)}),
    "SANFlow": ("sanflow", FLOWS),
    "CFLOW-AD": ("sanflow", FLOWS),
}
"""Recipe and settings; CFLOW-AD is SANFlow's flow without predicted statistics and synthetic anomalies."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.joint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each category")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(words)
    about = provenance(["python", "-m", "benchmarks.joint", *(sys.argv[1:] if words is None else words)])
    about |= {"image_size": SIZE, "epochs": f"{options.steps} steps"}
    found = begun(options.json, about)
    for seed in options.seeds:
        for row in options.rows:
            cell = found.setdefault(row, {}).setdefault(str(seed), {})
            if not cell:
                cell |= measure(options.data, row, seed, options.steps)
                print(json.dumps({row: {seed: cell}}), flush=True)
                if options.json is not None:
                    write_json(options.json, {**about, "results": found})
    print(table(found))
    return 0


def measure(data: Path, row: str, seed: int, steps: int) -> dict[str, Any]:
    """Return the metrics of each category by one model for each, and by joint models."""
    from semflow.data import Categories, open_dataset

    train, test = (open_dataset(data, split, SIZE, categories="all", cache=True) for split in ("train", "test"))
    assert isinstance(train, Categories)
    assert isinstance(test, Categories)
    count, found = len(train.parts), {"separate": {}, "seconds": {}}  # type: ignore[var-annotated]
    start = time.process_time()
    for name, part in train.parts.items():
        found["separate"] |= evaluated(fitted(part, row, seed, steps), {name: test.parts[name]})
    found["seconds"]["separate"] = round(time.process_time() - start, 1)
    kinds = {"joint": count, **({"joint, one memory": 1} if row in ("PatchCore", "memory_flow") else {})}
    for kind, memories in kinds.items():
        start = time.process_time()
        found[kind] = evaluated(fitted(train, row, seed, steps * count, memories, count), test.parts)
        found["seconds"][kind] = round(time.process_time() - start, 1)
    return found


def fitted(train: Any, row: str, seed: int, steps: int, memories: int = 1, models: int = 1) -> Any:
    """Return a model whose memory is that of a number of the separate models, of which `models` have these images."""
    from semflow import fit
    from semflow.recipes import build
    from semflow.recipes.sanflow import ABLATIONS

    recipe, settings = ROWS[row]
    changed = {"backbone.name": "tf_efficientnet_lite0", "backbone.weights": "packaged", "image_size": SIZE}
    changed |= settings | {"seed": seed} | (ABLATIONS["1a"] if row == "CFLOW-AD" else {})
    if row == "PatchCore":
        changed["coreset"] = SHARE * memories / models
    elif row == "memory_flow":
        changed["memory"] = STORED * memories
    detector = build(recipe, changed)
    training = detector.provenance.training
    trained = bool(training.epochs or training.steps)
    training = replace(training, seed=seed, **({"steps": steps, "batch_size": 8} if trained else {}))
    return fit(detector, train, training, progress=False)


def evaluated(detector: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a model on each category."""
    from semflow import evaluate

    metrics = {name: evaluate(detector, part) for name, part in parts.items()}
    return {name: {metric: found[metric] for metric in METRICS} for name, found in metrics.items()}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the means over the categories in percent; of joint models the difference to separate ones by seed."""
    rows = []
    for row, cells in results.items():
        for kind in [kind for kind in next(iter(cells.values())) if kind != "seconds"]:
            joint = kind != "separate"
            texts = []
            for metric in METRICS:
                own, base = ({s: mean(cell[k], metric) for s, cell in cells.items()} for k in (kind, "separate"))
                values = {int(seed): value - joint * base[seed] for seed, value in own.items()}
                texts.append(text_of(spread(values), 1, signed=joint, factor=100))
            rows.append([row, kind, *texts])
    return markdown_table(["method", "models", *METRICS.values()], rows)


def mean(categories: Mapping[str, Mapping[str, float]], metric: str) -> float:
    """Return the mean of a metric over the categories."""
    return statistics.fmean(found[metric] for found in categories.values())


if __name__ == "__main__":
    sys.exit(main())
