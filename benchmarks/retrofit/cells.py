"""A cell of the retrofit: one library's flow, with one base, trained from one seed on one category, and measured."""

import sys
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semflow._version import __version__
from semflow.data import collate
from semflow.features import TimmFeatures
from semflow.flows import Standardize

from ..shared.datasets import Data
from ..shared.memory import peak_memory
from ..shared.record import provenance, versions
from ..shared.store import CellStore
from .flows import LIBRARIES
from .model import Model, Variant, detection, seeded

__all__ = ["Failure", "Prepared", "RetrofitCell", "RetrofitJob", "Setup", "measure", "perform", "prepare"]

BATCH = 8


@dataclass(frozen=True)
class Setup:
    """What all cells of a run have in common.

    Args:
        backbone, weights, strides, image_size: of the frozen features.
        steps, batch_size, learning_rate: of Adam; the rate falls to zero along a cosine.
        mode: the variance that the two retrofitted bases start from, and the mode of the prior of the predicted one.
    """

    backbone: str
    weights: str
    strides: tuple[int, ...]
    image_size: int
    steps: int
    batch_size: int
    learning_rate: float
    mode: float


@dataclass(frozen=True)
class RetrofitCell:
    """What a result depends on."""

    library: str
    variant: Variant
    data: Data
    fingerprint: str
    seed: int
    setup: Setup

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.library} {self.variant}, {self.data.category}, seed {self.seed}"

    def config(self) -> dict[str, Any]:
        """The configuration that names the cell in a store."""
        of = LIBRARIES[self.library].package[0] or "torch"
        return {
            "benchmark": "retrofit",
            "semflow": __version__,
            of: versions(of)[of],
            "library": self.library,
            "flow": LIBRARIES[self.library].text,
            "variant": self.variant,
            "data": {"kind": self.data.kind, "category": self.data.category, "fingerprint": self.fingerprint},
            "seed": self.seed,
            **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.setup).items()},
        }


@dataclass(frozen=True)
class RetrofitJob:
    """Cells of one category, for which the features are computed once."""

    cells: tuple[RetrofitCell, ...]
    store: str
    command: tuple[str, ...]
    threads: int | None = None


class Failure(NamedTuple):
    """A cell that has no result, and why."""

    cell: RetrofitCell
    error: str
    traceback: str


class Prepared(NamedTuple):
    """Standardised feature maps of one category, a tensor a scale, and what is known of the test images."""

    train: list[Tensor]
    test: list[Tensor]
    labels: Tensor
    masks: Tensor
    seconds: float


def perform(job: RetrofitJob) -> list[Failure]:
    """Measure the cells of a job, keep each as it is done and say so; runs in a process of its own."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    store, failures = CellStore(job.store), []
    prepared = prepare(job.cells[0].data, job.cells[0].setup)
    packages = [library.package[0] for library in LIBRARIES.values() if library.package[0]]
    record = {**provenance(job.command), "versions": versions(*packages)}
    for cell in job.cells:
        try:
            result = measure(cell, prepared)
            store.put(cell.config(), result, record)
            seconds = result["train_seconds"] + result["evaluate_seconds"]
            print(f"{cell.label}: log p {result['metrics']['log_likelihood']:.3f} ({seconds:.0f} s)", file=sys.stderr)
        except Exception as error:  # the other cells of the job are none the worse
            text = " ".join(str(error).split()) or "no message"
            failures.append(Failure(cell, f"{type(error).__name__}: {text}", traceback.format_exc()))
    return failures


@torch.no_grad()
def prepare(data: Data, setup: Setup) -> Prepared:
    """The maps of the frozen backbone, each channel brought to mean 0 and variance 1 over the training images."""
    began = time.perf_counter()
    features = TimmFeatures(setup.backbone, setup.weights, setup.strides)
    train, test = (data.open(split, setup.image_size) for split in ("train", "test"))  # type: ignore[arg-type]

    def run(images: Any) -> tuple[list[Tensor], list[Any]]:
        parts, batches = [], []
        for start in range(0, len(images), BATCH):
            batch = collate([images[k] for k in range(start, min(start + BATCH, len(images)))])
            parts.append(features(batch.images))
            batches.append((batch.labels, batch.anomaly_masks))
        return [torch.cat(maps) for maps in zip(*parts, strict=True)], batches

    of_train, _ = run(train)
    of_test, known = run(test)
    scaled = [Standardize(maps.shape[1]).fit([maps]) for maps in of_train]
    labels, masks = (torch.cat(values) for values in zip(*known, strict=True))
    return Prepared(
        [scale(maps)[0] for scale, maps in zip(scaled, of_train, strict=True)],
        [scale(maps)[0] for scale, maps in zip(scaled, of_test, strict=True)],
        labels,
        masks,
        time.perf_counter() - began,
    )


def measure(cell: RetrofitCell, prepared: Prepared) -> dict[str, Any]:
    """Train, and evaluate the model of the last step.

    Returns:
        `metrics`: those of normal test images, in nats per dimension of the standardised features, are `log_prob`, what
        the model says; `log_likelihood`, the same with the variance integrated out in place of the expectation over it
        (they differ for the predicted variance only); `log_likelihood_start`, the latter after one step. The others are
        of the anomaly map of the latents, and `..._log_det` of that of the features, None where the flow has no log-det
        of a location. Then what it cost, and `disagreement`: the largest difference between log p by the library and
        by semflow on a standard normal, per dimension.
    """
    setup, normal = cell.setup, [maps[prepared.labels == 0] for maps in prepared.test]
    sizes = [(x.shape[1], (x.shape[2], x.shape[3])) for x in prepared.train]
    with seeded(cell.seed):
        model = Model(LIBRARIES[cell.library], cell.variant, sizes, setup.mode)
        began, cpu, start = time.perf_counter(), time.process_time(), 0.0
        for step in model.train(prepared.train, setup.steps, setup.batch_size, setup.learning_rate, cell.seed):
            if step == 1:
                start = model.per_dimension(normal, integrated=True)
        trained, trained_cpu = time.perf_counter(), time.process_time()
        known = (prepared.labels, prepared.masks)
        log_prob = model.per_dimension(normal)
        integrated = model.per_dimension(normal, integrated=True) if cell.variant == "predicted" else log_prob
        metrics = {
            "log_prob": log_prob,
            "log_likelihood": integrated,
            "log_likelihood_start": start,
            **detection(model.latent_map, prepared.test, *known),
        }
        feature_map = model.feature_map if LIBRARIES[cell.library].event == "location" else None
        of_features = detection(feature_map, prepared.test, *known)
        metrics |= {f"{name}_log_det": value for name, value in of_features.items()}
        disagreement = model.disagreement(normal)
    return {
        "metrics": metrics,
        "disagreement": disagreement,
        "event": LIBRARIES[cell.library].event,
        "steps": setup.steps,
        "trained_parameters": model.counts(),
        "train_images": len(prepared.train[0]),
        "test_images": len(prepared.labels),
        "normal_test_images": len(normal[0]),
        "features_seconds": round(prepared.seconds, 2),
        "train_seconds": round(trained - began, 2),
        "train_cpu_seconds": round(trained_cpu - cpu, 2),
        "evaluate_seconds": round(time.perf_counter() - trained, 2),
        "peak_memory_mb": peak_memory(),
        "threads": torch.get_num_threads(),
    }
