"""Accuracy of SANFlow on MVTec AD categories, last epoch, mean and spread over seeds, in one small JSON file.

    python benchmarks/mvtec.py --data mvtec --epochs toothbrush=80 screw=25 --output benchmarks/results/mvtec_lite0.json

Runs `benchmarks.reproduce sanflow` with packaged EfficientNet-Lite0 weights, with the same cells in the same file.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.options import pairs, parse
from benchmarks.reproduce.planning import plan
from benchmarks.reproduce.tables import table
from benchmarks.shared.figures import spread
from benchmarks.shared.record import provenance, write_json
from benchmarks.shared.store import CellStore
from benchmarks.shared.study import run_command

METRICS = ("image_auroc", "pixel_auroc", "aupro", "image_f1_max")
TIMES = ("train_images", "test_images", "train_seconds", "train_cpu_seconds", "evaluate_seconds")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the words of a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with a folder for each category")
    parser.add_argument("--epochs", nargs="+", default=["toothbrush=80", "screw=25"], metavar="CATEGORY=N")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="packaged")
    parser.add_argument("--image-size", default="256")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the recipe")
    parser.add_argument("--fit", nargs="+", default=[], metavar="NAME=VALUE", help="settings of training")
    parser.add_argument("--jobs", default="2", help="cells at a time")
    parser.add_argument("--threads", default="1", help="threads of each cell")
    parser.add_argument("--cells", default="runs/benchmarks/cells.jsonl", help="file of finished cells")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser.parse_args(words)


def reproduce_words(options: argparse.Namespace) -> list[str]:
    """Return the same options for `benchmarks.reproduce`."""
    words = ["sanflow", "--categories", *(word.split("=")[0] for word in options.epochs), "--no-chart"]
    for name, value in vars(options).items():
        if name != "output" and value:
            words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    return [*words, "--output", str(Path(options.cells).parent)]


def summary(cells: list[dict[str, Any]], options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """Return cells and means with the command, commit, versions and machine."""
    means: dict[str, Any] = {}
    for category in dict.fromkeys(c["category"] for c in cells):
        mine = [c for c in cells if c["category"] == category]
        for metric in METRICS:
            found = spread({c["seed"]: c[metric] for c in mine}) or {}
            std = None if found["std"] is None else round(found["std"], 4)
            means.setdefault(category, {})[metric] = {"mean": round(found["mean"], 4), "std": std, "seeds": len(mine)}
    return {
        **provenance(command),
        "seeds": sorted({c["seed"] for c in cells}),
        "epoch": "last",
        "recipe": {name: pairs(getattr(options, name), f"--{name}") for name in ("set", "fit")},
        "means": means,
        "cells": cells,
    }


def main(words: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(words)
    command = ["python", "benchmarks/mvtec.py", *(sys.argv[1:] if words is None else words)]
    chosen = parse(reproduce_words(options))
    code = run_command(lambda: reproduce.run(chosen, command))
    if code > 1:
        return code
    done = []
    for cell in plan(table("sanflow"), table("sanflow").rows, chosen, CellStore(chosen.cells)):
        if cell.kept is not None:
            result, commit = cell.kept["result"], cell.kept["record"].get("commit")
            about = {"category": cell.key.category, "seed": cell.key.seed, "epochs": result["epochs"], "commit": commit}
            done.append({**about, **result["metrics"], **{name: result[name] for name in TIMES}})
    done.sort(key=lambda c: (c["category"], c["seed"]))
    found = summary(done, options, command)
    write_json(options.output, found)
    for category, metrics in found["means"].items():
        print(category, "  ".join(f"{m} {v['mean']:.4f} ± {v['std'] or 0:.4f}" for m, v in metrics.items()))
    return code


if __name__ == "__main__":
    sys.exit(main())
