"""Accuracy of SANFlow on MVTec AD categories, last epoch, mean and spread over seeds.

    python benchmarks/mvtec.py --data mvtec --epochs toothbrush=80 screw=25 --output benchmarks/results/mvtec_lite0.json

Trains one detector for each category and seed on packaged EfficientNet-Lite0 weights, evaluates the model of the last
epoch once, and writes every figure with its command, versions, machine and seed. Finished cells are kept: a second run
with the same options does only what is missing.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

METRICS = ("image_auroc", "pixel_auroc", "aupro", "image_f1_max")


def cell(job: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate one category with one seed."""
    import torch

    from semflow import evaluate, fit
    from semflow.data import MVTecAD
    from semflow.recipes import sanflow

    torch.set_num_threads(job["threads"])
    root = Path(job["data"]) / job["category"]
    detector = sanflow(job["backbone"], job["weights"], image_size=job["image_size"], seed=job["seed"], **job["set"])
    train = MVTecAD(root, split="train", image_size=job["image_size"], cache=True)
    test = MVTecAD(root, split="test", image_size=job["image_size"])
    began, cpu = time.perf_counter(), time.process_time()
    fit(detector, train, epochs=job["epochs"], seed=job["seed"], progress=job["progress"], **job["fit"])
    trained = time.perf_counter()
    result: dict[str, Any] = dict(evaluate(detector, test))
    return {
        **{key: job[key] for key in ("category", "seed", "epochs")},
        **result,
        "train_images": len(train),
        "test_images": len(test),
        "train_seconds": round(trained - began, 1),
        "train_cpu_seconds": round(time.process_time() - cpu, 1),
        "evaluate_seconds": round(time.perf_counter() - trained, 1),
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def pairs(words: list[str]) -> dict[str, Any]:
    """`name=value` words, values as JSON where they are."""

    def value(word: str) -> Any:
        try:
            return json.loads(word)
        except ValueError:
            return word

    return {name: value(word) for name, word in (w.split("=", 1) for w in words)}


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds the categories' folders")
    parser.add_argument("--epochs", nargs="+", default=["toothbrush=80", "screw=25"], metavar="CATEGORY=N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="packaged")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="further arguments of the recipe")
    parser.add_argument("--fit", nargs="*", default=[], metavar="NAME=VALUE", help="further arguments of fit")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each cell")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser.parse_args(words)


def report(cells: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Everything that a reader needs to believe a figure, or to get it again."""
    import semflow

    means = {}
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
    return {
        "command": shlex.join(["python", "benchmarks/mvtec.py", *sys.argv[1:]]),
        "versions": {
            "semflow": semflow.__version__,
            "python": platform.python_version(),
            "torch": metadata.version("torch"),
            "timm": metadata.version("timm"),
        },
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "epoch": "last",
        "recipe": {"set": pairs(options.set), "fit": pairs(options.fit)},
        "means": means,
        "cells": cells,
    }


def main() -> None:
    options = parse()
    done: list[dict[str, Any]] = []
    if options.output.exists():
        before = json.loads(options.output.read_text())
        if before["recipe"] == {"set": pairs(options.set), "fit": pairs(options.fit)}:
            done = before["cells"]
    jobs = [
        {
            "category": category,
            "epochs": epochs,
            "seed": seed,
            "data": options.data,
            "backbone": options.backbone,
            "weights": options.weights,
            "image_size": options.image_size,
            "threads": options.threads,
            "progress": options.progress,
            "set": pairs(options.set),
            "fit": pairs(options.fit),
        }
        for category, epochs in pairs(options.epochs).items()
        for seed in options.seeds
    ]
    key = ("category", "epochs", "seed")
    finished = {tuple(c[k] for k in key) for c in done}
    jobs = [job for job in jobs if tuple(job[k] for k in key) not in finished]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        for result in pool.imap_unordered(cell, jobs, chunksize=1):
            print(json.dumps(result), flush=True)
            done.append(result)
            done.sort(key=lambda c: (c["category"], c["seed"]))
            temporary = options.output.with_suffix(".partial")
            temporary.write_text(json.dumps(report(done, options), indent=2) + "\n")
            temporary.replace(options.output)
    for category, metrics in report(done, options)["means"].items():
        print(category, "  ".join(f"{m} {v['mean']:.4f} ± {v['std'] or 0:.4f}" for m, v in metrics.items()))


if __name__ == "__main__":
    main()
