"""A cell: one recipe with its arguments, trained on one category from one seed, and evaluated on its test images."""

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from semflow.errors import ConfigError

from ..shared.datasets import Data
from ..shared.memory import peak_memory
from ..shared.record import provenance
from ..shared.store import CellStore
from . import peers

if TYPE_CHECKING:
    import torch

__all__ = ["Cell", "Job", "arguments_of", "measure", "perform"]


@dataclass(frozen=True)
class Cell:
    """What the result depends on.

    Args:
        recipe: of `semflow.recipes.RECIPES`.
        arguments: all of the recipe's arguments but the seed, see `arguments_of`.
        data: the category.
        fingerprint: of its files.
        seed: of the recipe and of `fit`.
        fit: further arguments of `semflow.fit` (epochs, batch_size, learning_rate, schedule); the recipe's plan else.
        evaluations: how often the test images are looked at on the way, for best-on-test; 1 is at the end only.
    """

    recipe: str
    arguments: Mapping[str, Any]
    data: Data
    fingerprint: str
    seed: int
    fit: Mapping[str, Any] = field(default_factory=dict)
    evaluations: int = 1

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.recipe} {self.data.category} seed {self.seed}"

    def config(self) -> dict[str, Any]:
        """The configuration that names the cell in a store; where the data lie and who computes is not in it."""
        from semflow._version import __version__

        versions = {"semflow": __version__}
        if self.recipe in peers.RECIPES:
            versions["anomalib"] = peers.anomalib_version()
        return {
            **versions,
            "recipe": self.recipe,
            "arguments": dict(self.arguments),
            "data": {"kind": self.data.kind, "category": self.data.category, "fingerprint": self.fingerprint},
            "seed": self.seed,
            "fit": {name: self.fit.get(name) for name in ("epochs", "batch_size", "learning_rate", "schedule")},
            "evaluations": self.evaluations,
        }


@dataclass(frozen=True)
class Job:
    """A cell and how to compute it here."""

    cell: Cell
    store: str
    command: tuple[str, ...]
    device: str = "cpu"
    threads: int | None = None


def arguments_of(recipe: str, *given: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of a recipe but its seed: its defaults, and over them what is given, the last one first.

    Raises:
        ConfigError: no such recipe, or it has no such argument.
    """
    if recipe in peers.RECIPES:
        return peers.peer_arguments(recipe, *given)
    from semflow.recipes import RECIPES

    if recipe not in RECIPES:
        raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, but got {recipe!r}")
    parameters = inspect.signature(RECIPES[recipe]).parameters
    found = {name: parameter.default for name, parameter in parameters.items() if name != "seed"}
    for more in given:
        for name, value in more.items():
            if name not in found:
                raise ConfigError(f"{recipe} has no argument {name}, expected one of {', '.join(found)}")
            found[name] = tuple(value) if isinstance(value, list) else value
    return found


def perform(job: Job) -> dict[str, Any]:
    """Measure a cell and keep it; runs in a process of its own."""
    work = peers.measure_peer if job.cell.recipe in peers.RECIPES else measure
    result = work(job.cell, job.device, job.threads)
    CellStore(job.store).put(job.cell.config(), result, provenance(job.command, job.device))
    return result


def measure(cell: Cell, device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Train, evaluate the model of the last epoch, and say what it cost.

    Returns:
        `metrics` (of the last epoch, as fractions), `best` (highest on the test images on the way, with its epoch,
        where `evaluations` asks for it), the plan as it was (epochs, batch size, steps ...), counts and seconds.
    """
    import torch

    from semflow import evaluate, fit
    from semflow.recipes import build

    from .history import History

    if threads is not None:
        torch.set_num_threads(threads)
    image_size = int(cell.arguments["image_size"])
    detector = build(cell.recipe, **cell.arguments, seed=cell.seed)
    train, test = (cell.data.open(split, image_size) for split in ("train", "test"))
    given = {name: value for name, value in cell.fit.items() if value is not None}
    plan = replace(detector.plan, seed=cell.seed, **given)
    history = History(train, test, plan.epochs, cell.evaluations)
    began, cpu = time.perf_counter(), time.process_time()
    hook = history if cell.evaluations > 1 else None
    with count_steps(detector.flows) as steps:
        fit(detector, train, seed=cell.seed, device=device, progress=False, on_epoch=hook, **given)
    trained, trained_cpu = time.perf_counter() - history.seconds, time.process_time() - history.cpu_seconds
    metrics = evaluate(detector, test)
    done, done_cpu = time.perf_counter() - history.seconds, time.process_time() - history.cpu_seconds
    history.add(plan.epochs, metrics)
    return {
        "metrics": metrics,
        **({"best": history.best(), "history": history.records} if cell.evaluations > 1 else {}),
        "epoch": "last",
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "schedule": plan.schedule,
        "steps": steps["taken"],
        "trained_parameters": sum(p.numel() for p in detector.trainable()),
        "train_images": len(train),
        "test_images": len(test),
        "train_seconds": round(trained - began, 2),
        "train_cpu_seconds": round(trained_cpu - cpu, 2),
        "evaluate_seconds": round(done - trained, 2),
        "evaluate_cpu_seconds": round(done_cpu - trained_cpu, 2),
        "peak_memory_mb": peak_memory(),
        "device": str(next(detector.flows.parameters()).device),
        "threads": torch.get_num_threads(),
    }


@contextmanager
def count_steps(flows: "torch.nn.Module") -> Iterator[dict[str, int]]:
    """Count the optimiser's steps that change a flow (a variance head may take steps of its own)."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = {"taken": 0}

    def count(*_: object) -> None:
        steps["taken"] += any(p.grad is not None for p in flows.parameters())

    handle = register_optimizer_step_post_hook(count)
    try:
        yield steps
    finally:
        handle.remove()
