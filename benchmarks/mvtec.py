"""Accuracy of SANFlow on MVTec AD categories, last epoch, mean and spread over seeds, in one small JSON file.

    python benchmarks/mvtec.py --data mvtec --epochs toothbrush=80 screw=25 --output benchmarks/results/mvtec_lite0.json

A front of `benchmarks.reproduce sanflow` with packaged EfficientNet-Lite0 weights: the same cells, kept in the same
place, without the paper beside them.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reproduce import options as reproduce_options
from benchmarks.reproduce.cells import Job, perform
from benchmarks.reproduce.planning import plan
from benchmarks.reproduce.tables import table
from benchmarks.shared.record import provenance
from benchmarks.shared.runner import run_all
from benchmarks.shared.store import CellStore

METRICS = ("image_auroc", "pixel_auroc", "aupro", "image_f1_max")
TIMES = ("train_images", "test_images", "train_seconds", "train_cpu_seconds", "evaluate_seconds")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds the categories' folders")
    parser.add_argument("--epochs", nargs="+", default=["toothbrush=80", "screw=25"], metavar="CATEGORY=N")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="packaged")
    parser.add_argument("--image-size", default="256")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="further arguments of the recipe")
    parser.add_argument("--fit", nargs="+", default=[], metavar="NAME=VALUE", help="further arguments of fit")
    parser.add_argument("--jobs", default="2", help="cells at a time")
    parser.add_argument("--threads", default="1", help="threads of each cell")
    parser.add_argument("--cells", default="runs/benchmarks/cells", help="where finished cells are kept")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser.parse_args(words)


def reproduce_words(options: argparse.Namespace) -> list[str]:
    """The same options for `benchmarks.reproduce`."""
    words = ["sanflow", "--data", options.data, "--categories", *(word.split("=")[0] for word in options.epochs)]
    words += ["--epochs", *options.epochs, "--seeds", *options.seeds, "--backbone", options.backbone]
    words += ["--weights", options.weights, "--image-size", options.image_size, "--cells", options.cells]
    words += ["--jobs", options.jobs, "--threads", options.threads]
    for name in ("set", "fit"):
        words += [f"--{name}", *getattr(options, name)] if getattr(options, name) else []
    return words


def summary(cells: list[dict[str, Any]], options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """Everything that a reader needs to believe a figure, or to get it again."""
    means: dict[str, Any] = {}
    for category in dict.fromkeys(c["category"] for c in cells):
        mine = [c for c in cells if c["category"] == category]
        means[category] = {
            m: {
                "mean": round(statistics.fmean(c[m] for c in mine), 4),
                "std": round(statistics.stdev(c[m] for c in mine), 4) if len(mine) > 1 else None,
                "seeds": len(mine),
            }
            for m in METRICS
        }
    recipe = {name: reproduce_options.pairs(getattr(options, name), f"--{name}") for name in ("set", "fit")}
    return {
        **provenance(command),
        "seeds": sorted({c["seed"] for c in cells}),
        "epoch": "last",
        "recipe": {name: {k: reproduce_options.plain(v) for k, v in given.items()} for name, given in recipe.items()},
        "means": means,
        "cells": cells,
    }


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    command = ["python", "benchmarks/mvtec.py", *(sys.argv[1:] if words is None else words)]
    chosen = reproduce_options.parse(reproduce_words(options))
    planned = plan(table("sanflow"), table("sanflow").rows, chosen)
    store = CellStore(chosen.cells)
    missing = [c.cell for c in planned if store.get(c.cell.config()) is None]
    jobs = [Job(cell, str(store.folder), tuple(command), chosen.device, chosen.threads) for cell in missing]
    failed = False
    for outcome in run_all(jobs, perform, chosen.jobs, chosen.threads):
        failed |= bool(outcome.error)
        print(outcome.job.cell.label, outcome.error or json.dumps(outcome.result["metrics"]), flush=True)
    done = []
    for c in planned:
        kept = store.get(c.cell.config())
        if kept is not None:
            result = kept["result"]
            place = {"category": c.cell.data.category, "seed": c.cell.seed, "epochs": result["epochs"]}
            place["commit"] = kept["record"].get("commit")  # that it was trained at
            done.append({**place, **result["metrics"], **{name: result[name] for name in TIMES}})
    done.sort(key=lambda c: (c["category"], c["seed"]))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_suffix(".partial")
    temporary.write_text(json.dumps(summary(done, options, command), indent=2) + "\n")
    temporary.replace(options.output)
    for category, metrics in summary(done, options, command)["means"].items():
        print(category, "  ".join(f"{m} {v['mean']:.4f} ± {v['std'] or 0:.4f}" for m, v in metrics.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
