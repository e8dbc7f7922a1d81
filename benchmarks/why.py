"""Why a predicted variance does, or does not, help CFLOW-AD: one thing changed at a time.

    python -m benchmarks.why --data mvtec --categories toothbrush --seeds 0 1 2 --jobs 2 --threads 1

Every variant is trained from the same seeds for the same steps (`long`: three times as many), and its test images are
scored twice: with the log-det of each location, as CFLOW-AD has it, and without, as a flow of log-dets per sample must.
Finished variants are kept in --output/cells; the table goes to --output/why.md and .json.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .shared.datasets import Data
from .shared.record import provenance
from .shared.runner import run_all
from .shared.store import CellStore

__all__ = ["VARIANTS", "main"]

METRICS = ("image_auroc", "pixel_auroc", "aupro")
SCORES = {"": "with log-det", "z_": "without"}
SP: dict[str, Any] = {"statistics": True}
# The recipe's arguments; in capitals, what is no argument of it.
VARIANTS: dict[str, dict[str, Any]] = {
    "CFLOW-AD": {},
    "+SP": SP,
    "+SP, no KL": SP | {"kl": 0.0},
    "+SP, h and flow start at variance 1": SP | {"mode": 1.0},
    "+SP, h on the features": SP | {"H": "features"},
    "+SP, marginal likelihood": SP | {"FORM": "marginal"},
    "+SP, marginal likelihood, one alpha and beta a scale": SP | {"FORM": "marginal", "H": "constant"},
    "CFLOW-AD, 5 x learning rate": {"RATE": 5.0},
    "+SP, 5 x learning rate": SP | {"RATE": 5.0},
    "+SP, marginal likelihood, 5 x": SP | {"FORM": "marginal", "RATE": 5.0},
    "+SP, marginal likelihood, one alpha and beta a scale, 5 x": SP
    | {"FORM": "marginal", "H": "constant", "RATE": 5.0},
    "CFLOW-AD, long": {"LONG": 3},
    "+SP, long": SP | {"LONG": 3},
}


@dataclass(frozen=True)
class Task:
    """A variant on a category from a seed."""

    variant: str
    data: Data
    fingerprint: str
    seed: int
    epochs: int
    store: str
    command: tuple[str, ...]
    threads: int

    def config(self) -> dict[str, Any]:
        """What the result depends on."""
        data = {"category": self.data.category, "fingerprint": self.fingerprint}
        return {"why": VARIANTS[self.variant], "data": data, "seed": self.seed, "epochs": self.epochs}


def perform(task: Task) -> dict[str, Any]:
    """Train a variant, score the test images both ways, and keep the figures."""
    import torch

    from semflow import evaluate, fit
    from semflow.bases import SemanticGaussian
    from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance
    from semflow.recipes import cflow_ad

    torch.set_num_threads(task.threads)
    given = VARIANTS[task.variant]
    arguments = {name: value for name, value in given.items() if name.islower()}
    detector = cflow_ad("tf_efficientnet_lite0", "packaged", seed=task.seed, **arguments)
    if "H" in given:
        networks = [FeatureStatisticsNetwork(c) for c in detector.features.channels]
        detector.head = InverseGammaVariance(networks)
        if given["H"] == "constant":  # only the last bias is left to learn
            for network in networks:
                network.requires_grad_(False).output.weight.zero_()
                network.output.bias.requires_grad_(True)
    if "FORM" in given:
        detector.base = SemanticGaussian(form=given["FORM"])
    train, test = (task.data.open(split, detector.image_size) for split in ("train", "test"))
    fit(
        detector,
        train,
        seed=task.seed,
        epochs=task.epochs * given.get("LONG", 1),
        batch_size=4,
        learning_rate=detector.plan.learning_rate * given.get("RATE", 1.0),
        progress=False,
    )
    found: dict[str, Any] = {}
    for prefix in SCORES:
        detector.score_log_det = prefix == ""
        if prefix:  # another score has other maxima
            detector.fit_score(sample.image[None] for sample in train)
        found |= {prefix + name: value for name, value in evaluate(detector, test).items() if name in METRICS}
    CellStore(task.store).put(task.config(), {"metrics": found}, provenance(task.command))
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="folder of the categories' folders, as MVTec AD has them")
    add("--categories", nargs="+", default=["toothbrush"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--epochs", type=int, default=20)
    add("--jobs", type=int, default=1)
    add("--threads", type=int, default=1)
    add("--output", type=Path, default=Path("runs/why"))
    add("--report", action="store_true", help="write the table of what there is, and train nothing")
    options = parser.parse_args(words)
    command = ("python", "-m", "benchmarks.why", *(sys.argv[1:] if words is None else words))
    store = CellStore(options.output / "cells")
    tasks = []
    for category in options.categories:
        data = Data("mvtec", options.data, category)
        mark = data.fingerprint()
        rest = (options.epochs, str(store.folder), command, options.threads)
        tasks += [Task(v, data, mark, seed, *rest) for seed in options.seeds for v in options.variants]
    waiting = [] if options.report else [task for task in tasks if store.get(task.config()) is None]
    failed = 0
    for outcome in run_all(waiting, perform, options.jobs, options.threads):
        failed += bool(outcome.error)
        job, said = outcome.job, outcome.error or json.dumps(outcome.result)
        print(f"{job.variant}, {job.data.category}, seed {job.seed}: {said}  ({outcome.seconds:.0f} s)", flush=True)
    kept = {task: cell["result"]["metrics"] for task in tasks if (cell := store.get(task.config()))}
    table = summarize(kept, options.variants)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"rows": table, "epochs": options.epochs, "seeds": options.seeds, **provenance(command)}
    (options.output / "why.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output / "why.md").write_text(markdown(table, content), encoding="utf-8")
    print(markdown(table, content))
    return 1 if failed else 0


def summarize(kept: Mapping[Task, Mapping[str, float]], variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each variant and metric in percent: mean and standard deviation over the seeds of the categories' mean."""
    table: dict[str, dict[str, Any]] = {}
    for variant in variants:
        mine = [task for task in kept if task.variant == variant]
        for metric in [prefix + name for prefix in SCORES for name in METRICS]:
            seeds = [
                statistics.fmean(100 * kept[task][metric] for task in mine if task.seed == seed)
                for seed in sorted({task.seed for task in mine})
            ]
            if seeds:
                spread = statistics.stdev(seeds) if len(seeds) > 1 else None
                table.setdefault(variant, {})[metric] = {"mean": statistics.fmean(seeds), "std": spread, "seeds": seeds}
    return table


def markdown(table: Mapping[str, Mapping[str, Any]], content: Mapping[str, Any]) -> str:
    """The table for people."""
    names = [f"{name.replace('_', ' ')}, {how}" for how in SCORES.values() for name in METRICS]
    lines = ["| variant | seeds | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for variant, row in table.items():
        cells = [f"{m['mean']:.1f}" + ("" if m["std"] is None else f" ± {m['std']:.1f}") for m in row.values()]
        seeds = len(next(iter(row.values()))["seeds"])
        lines.append(f"| {variant} | {seeds} | " + " | ".join(cells) + " |")
    made = f"`{content['command']}`, commit {content['commit']}, {content['machine']}"
    return "\n".join([*lines, "", f"In percent, mean and standard deviation over the seeds, last epoch. {made}.", ""])


if __name__ == "__main__":
    raise SystemExit(main())
