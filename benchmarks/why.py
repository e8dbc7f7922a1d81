"""Show why a predicted variance does, or does not, help CFLOW-AD, by changing one setting at a time.

    python -m benchmarks.why --data mvtec --categories toothbrush --seeds 0 1 2 --jobs 2 --threads 1
    python -m benchmarks.why --output benchmarks/results/why --report

All variants are trained from the same seeds for the same number of steps (`long`: three times as many), and their test
images are scored twice: with the log-det of each location, as in CFLOW-AD, and without. Finished cells are kept in
OUTPUT/cells.jsonl; the table is written to OUTPUT/why.md and why.json.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semflow.errors import ConfigError

from .shared.datasets import Data
from .shared.figures import markdown_table, mean_per_seed, spread, text_of
from .shared.record import provenance, write, write_json
from .shared.store import CellStore, Kept, Key
from .shared.study import Failure, Job, measure_cells, run_command, run_study

METRICS = ("image_auroc", "pixel_auroc", "aupro")
SCORES = {"": "with log-det", "z_": "without"}
SP: dict[str, Any] = {"statistics.variance": "predicted"}
MARGINAL = SP | {"statistics.form": "marginal"}
CONSTANT = MARGINAL | {"network": "constant"}
# Settings of the recipe, and four changes that it does not have: `network`, an h on the features or one with constant
# alpha and beta per scale; `rate` and `long`, factors of the learning rate and of the epochs.
VARIANTS: dict[str, dict[str, Any]] = {
    "CFLOW-AD": {},
    "+SP": SP,
    "+SP, no KL": SP | {"statistics.kl": 0.0},
    "+SP, h and flow start at variance 1": SP | {"statistics.mode": 1.0},
    "+SP, h on the features": SP | {"network": "features"},
    "+SP, marginal likelihood": MARGINAL,
    "+SP, marginal likelihood, one alpha and beta per scale": CONSTANT,
    "CFLOW-AD, 5 x learning rate": {"rate": 5.0},
    "+SP, 5 x learning rate": SP | {"rate": 5.0},
    "+SP, marginal likelihood, 5 x": MARGINAL | {"rate": 5.0},
    "+SP, marginal likelihood, one alpha and beta per scale, 5 x": CONSTANT | {"rate": 5.0},
    "CFLOW-AD, long": {"long": 3},
    "+SP, long": SP | {"long": 3},
}
OTHER = ("network", "rate", "long")


@dataclass(frozen=True)
class Cell:
    """A variant on a category from a seed."""

    key: Key
    data: Data
    settings: Mapping[str, Any]

    @property
    def cost(self) -> float:
        """The relative cost of training."""
        return float(VARIANTS[self.key.row].get("long", 1))


def perform(job: Job[Cell]) -> list[Failure]:
    """Measure the cells of a job; runs in a separate process."""
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    return measure_cells(job, measure)


def measure(cell: Cell) -> dict[str, Any]:
    """Train a variant, and score the test images with and without log-det."""
    import torch

    from semflow import evaluate, fit
    from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance
    from semflow.recipes import build

    torch.manual_seed(cell.key.seed)  # of the added networks; the recipe and training have their own generators
    changes = VARIANTS[cell.key.row]
    settings = {name: value for name, value in changes.items() if name not in OTHER}
    backbone = {"backbone.name": "tf_efficientnet_lite0", "backbone.weights": "packaged"}
    detector = build("cflow_ad", {**backbone, "seed": cell.key.seed, **settings})
    if "network" in changes:
        networks = [FeatureStatisticsNetwork(c) for c in detector.features.channels]
        detector.head = InverseGammaVariance(networks)
        if changes["network"] == "constant":  # trains the last bias only
            for network in networks:
                network.requires_grad_(False).output.weight.zero_()
                network.output.bias.requires_grad_(True)
    train, test = (cell.data.open(split, detector.provenance.image_size) for split in ("train", "test"))
    training = detector.provenance.training
    training = replace(
        training,
        seed=cell.key.seed,
        epochs=cell.settings["epochs"] * changes.get("long", 1),
        batch_size=4,
        learning_rate=training.learning_rate * changes.get("rate", 1.0),
    )
    fit(detector, train, training, device="cpu", progress=False)
    found: dict[str, Any] = {}
    for prefix in SCORES:
        detector.score_log_det = prefix == ""
        if prefix:  # another score has other maxima
            detector.fit_score(sample.image[None] for sample in train)
        found |= {prefix + name: value for name, value in evaluate(detector, test).items() if name in METRICS}
    return {"metrics": found, "changes": changes}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.why", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="folder with a folder for each category, in the layout of MVTec AD")
    add("--categories", nargs="+", default=["toothbrush"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--epochs", type=int, default=20)
    add("--jobs", type=int, default=1)
    add("--threads", type=int, default=1)
    add("--output", type=Path, default=Path("runs/why"))
    add("--report", action="store_true", help="measure nothing: write the table of the cells that are kept")
    options = parser.parse_args(words)
    command = ("python", "-m", "benchmarks.why", *(sys.argv[1:] if words is None else words))
    return run_command(lambda: run(options, command))


def run(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Run parsed options and return the exit code."""
    store = CellStore(options.output / "cells.jsonl")
    cells = [] if options.report else plan(options)

    def update() -> None:
        if options.report:
            kept = list(store.latest().values())
        else:
            kept = [found for cell in cells if (found := store.find(cell.key, cell.settings))]
        content = {
            "rows": summarize(kept),
            "epochs": sorted({cell["settings"]["epochs"] for cell in kept}),
            **provenance(command),
            "commit": ", ".join(sorted({cell["record"]["commit"] for cell in kept})),
        }
        write_json(options.output / "why.json", content)
        write(options.output / "why.md", markdown(content))

    code = run_study(
        *(cells, store, command, options.output, update, perform), at_a_time=options.jobs, threads=options.threads
    )
    print((options.output / "why.md").read_text(encoding="utf-8"))
    return code


def plan(options: argparse.Namespace) -> list[Cell]:
    """Return the cells of the options."""
    if options.data is None:
        raise ConfigError("--data must be the folder of the data set, but got none")
    cells = []
    for category in options.categories:
        data = Data("mvtec", options.data, category)
        settings = {"epochs": options.epochs, "data": {"fingerprint": data.fingerprint()}}
        cells += [Cell(Key(v, category, seed), data, settings) for seed in options.seeds for v in options.variants]
    return cells


def summarize(kept: Sequence[Kept]) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation over the seeds of the mean over the categories, in percent.

    The figures are by variant and metric.
    """
    categories = list(dict.fromkeys(cell["category"] for cell in kept))
    table: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        for metric in [prefix + name for prefix in SCORES for name in METRICS]:
            mine = [cell for cell in kept if cell["row"] == variant]
            values = {(cell["category"], cell["seed"]): 100 * cell["result"]["metrics"][metric] for cell in mine}
            if found := spread(mean_per_seed(values, categories)):
                table.setdefault(variant, {})[metric] = found
    return table


def markdown(content: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    names = [f"{name.replace('_', ' ')}, {how}" for how in SCORES.values() for name in METRICS]
    rows = [
        [variant, str(len(row["aupro"]["seeds"])), *(text_of(found, 1) for found in row.values())]
        for variant, row in content["rows"].items()
    ]
    made = f"`{content['command']}`; cells of commit {content['commit']}; {content['machine']}"
    about = "In percent, mean and standard deviation over the seeds, last epoch."
    return f"{markdown_table(['variant', 'seeds', *names], rows)}\n\n{about} {made}.\n"


if __name__ == "__main__":
    raise SystemExit(main())
