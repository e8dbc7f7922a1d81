"""A cell: one row trained on one category from one seed, and evaluated on its test images."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..shared.datasets import Data
from ..shared.record import peak_memory
from ..shared.store import Key
from ..shared.study import Failure, Job, measure_cells
from . import peers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Cell:
    """One row on one category from one seed, with the settings that its result depends on.

    Args:
        key: row, category and seed; the seed is that of the recipe and of `fit`.
        recipe: of `semflow.recipes.RECIPES` or of `peers.RECIPES`.
        arguments: dotted settings of the recipe, see `semflow.recipes.build`.
        data: the category.
        settings: what the command sets, by which a finished cell is compared with this one.
        fit: changes of the recipe's training, such as epochs and batch_size.
        evaluations: number of evaluations during training, for best-on-test; 1 evaluates at the end only.
    """

    key: Key
    recipe: str
    arguments: Mapping[str, Any]
    data: Data
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    evaluations: int = 1

    @property
    def cost(self) -> float:
        """The relative cost of training, in epochs."""
        return float(self.fit.get("epochs") or 80)


def perform(job: Job[Cell]) -> list[Failure]:
    """Measure the cells of a job and keep them; runs in a separate process."""

    def measured(cell: Cell) -> dict[str, Any]:
        return (peers.measure_peer if cell.recipe in peers.RECIPES else measure)(cell, job.device, job.threads)

    return measure_cells(job, measured, ["anomalib"] if job.cells[0].recipe in peers.RECIPES else [])


def measure(cell: Cell, device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Train and evaluate a cell.

    Returns:
        `metrics` of the last epoch as fractions; with several evaluations `best`, the highest values on the test images
        and their epochs; all arguments and the training settings; numbers of images, seconds and memory.
    """
    import torch

    from semflow import evaluate, fit
    from semflow.recipes import build

    from .history import History

    if threads is not None:
        torch.set_num_threads(threads)
    detector = build(cell.recipe, {**cell.arguments, "seed": cell.key.seed})
    made = detector.provenance
    train, test = (cell.data.open(split, made.image_size) for split in ("train", "test"))
    training = replace(made.training, seed=cell.key.seed, **cell.fit)
    history = History(train, test, training.epochs, cell.evaluations, training.batch_size)
    began, cpu = time.perf_counter(), time.process_time()
    callbacks = [history] if cell.evaluations > 1 else []
    with count_steps(detector.flows) as steps:
        fit(detector, train, training, device=device, progress=False, callbacks=callbacks)
    trained, trained_cpu = time.perf_counter() - history.seconds, time.process_time() - history.cpu_seconds
    metrics = evaluate(detector, test)
    done, done_cpu = time.perf_counter() - history.seconds, time.process_time() - history.cpu_seconds
    history.add(training.epochs, metrics)
    return {
        "metrics": metrics,
        **({"best": history.best(), "history": history.records} if cell.evaluations > 1 else {}),
        "arguments": made.arguments,
        "epoch": "last" if training.epochs else "one pass",
        "epochs": None if training.steps else training.epochs or None,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "schedule": training.schedule,
        "steps": steps["taken"] or None,
        "trained_parameters": sum(p.numel() for p in detector.trainable()),
        "train_images": len(train),
        "test_images": len(test),
        "train_seconds": round(trained - began, 2),
        "train_cpu_seconds": round(trained_cpu - cpu, 2),
        "evaluate_seconds": round(done - trained, 2),
        "evaluate_cpu_seconds": round(done_cpu - trained_cpu, 2),
        "peak_memory_mb": peak_memory(),
        "device": str(detector.device),
        "threads": torch.get_num_threads(),
    }


@contextmanager
def count_steps(flows: "torch.nn.Module") -> Iterator[dict[str, int]]:
    """Count the optimizer steps that change a flow; a variance head may have steps of its own."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = {"taken": 0}

    def count(*_: object) -> None:
        steps["taken"] += any(p.grad is not None for p in flows.parameters())

    handle = register_optimizer_step_post_hook(count)
    try:
        yield steps
    finally:
        handle.remove()
