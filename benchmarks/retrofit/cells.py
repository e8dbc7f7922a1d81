"""A cell of the comparison: one library's flow with one base, trained from one seed on one category."""

import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semflow._version import __version__
from semflow.data import collate
from semflow.features import TimmFeatures
from semflow.flows import Standardize

from ..shared.datasets import Data
from ..shared.record import peak_memory, versions
from ..shared.store import Key
from ..shared.study import Failure, Job, measure_cells
from .flows import LIBRARIES
from .model import Model, Variant, detection, seeded

BATCH = 8


@dataclass(frozen=True)
class Setup:
    """Settings that all cells of a run share.

    Args:
        backbone, weights, strides, image_size: of the frozen features.
        steps, batch_size, learning_rate: of Adam, whose rate decays to zero along a cosine.
        mode: initial variance of the two added bases, and the mode of the prior of the predicted one.
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
    """One library's flow with one base on one category from one seed."""

    library: str
    variant: Variant
    data: Data
    fingerprint: str
    seed: int
    setup: Setup
    cost: float = 1.0

    @property
    def key(self) -> Key:
        """The name of the cell."""
        return Key(f"{self.library} {self.variant}", self.data.category, self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that finished cells are compared by."""
        package = LIBRARIES[self.library].package[0] or "torch"
        return {
            "semflow": __version__,
            package: versions(package)[package],
            "data": {"kind": self.data.kind, "fingerprint": self.fingerprint},
            **asdict(self.setup),
        }


class Prepared(NamedTuple):
    """Standardized feature maps of one category, one tensor per scale, with labels and masks of the test images."""

    train: list[Tensor]
    test: list[Tensor]
    labels: Tensor
    masks: Tensor
    seconds: float


def perform(job: Job[RetrofitCell]) -> list[Failure]:
    """Measure the cells of a job, which share the features, and keep each; runs in a separate process."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    prepared = prepare(job.cells[0].data, job.cells[0].setup)
    packages = [library.package[0] for library in LIBRARIES.values() if library.package[0]]

    def measured(cell: RetrofitCell) -> dict[str, Any]:
        result = measure(cell, prepared)
        print(f"{cell.key}: log p {result['metrics']['log_likelihood']:.3f}", file=sys.stderr)
        return result

    return measure_cells(job, measured, packages)


@torch.no_grad()
def prepare(data: Data, setup: Setup) -> Prepared:
    """Compute the maps of the frozen backbone, and standardize each channel over the training images."""
    began = time.perf_counter()
    features = TimmFeatures(setup.backbone, setup.weights, setup.strides)
    train, test = (data.open(split, setup.image_size) for split in ("train", "test"))  # type: ignore[arg-type]

    def run(images: Any) -> tuple[list[Tensor], list[Any]]:
        parts, known = [], []
        for start in range(0, len(images), BATCH):
            batch = collate([images[k] for k in range(start, min(start + BATCH, len(images)))])
            parts.append(features(batch.images))
            known.append((batch.labels, batch.anomaly_masks))
        return [torch.cat(maps) for maps in zip(*parts, strict=True)], known

    of_train, _ = run(train)
    of_test, known = run(test)
    scaled = [Standardize(maps.shape[1]).fit([maps]) for maps in of_train]
    labels, masks = (torch.cat(values) for values in zip(*known, strict=True))
    return Prepared(
        *([scale(maps)[0] for scale, maps in zip(scaled, part, strict=True)] for part in (of_train, of_test)),
        labels,
        masks,
        time.perf_counter() - began,
    )


def measure(cell: RetrofitCell, prepared: Prepared) -> dict[str, Any]:
    """Train a cell, and evaluate the model of the last step.

    Returns:
        `metrics`, cost and `disagreement`, the largest difference between log p by the library and by semflow on a
        standard normal, per dimension. Metrics of normal test images are in nats per dimension of the standardized
        features: `log_prob` of the model; `log_likelihood` with the variance integrated out, which differs only for the
        predicted variance; `log_likelihood_start`, the same after one step. The others are of the anomaly map of the
        latents and, as `..._log_det`, of that of the features; these are None if the flow has no log-det per location.
    """
    setup, normal = cell.setup, [maps[prepared.labels == 0] for maps in prepared.test]
    sizes = [(x.shape[1], (x.shape[2], x.shape[3])) for x in prepared.train]
    event = LIBRARIES[cell.library].event
    with seeded(cell.seed):
        model = Model(LIBRARIES[cell.library], cell.variant, sizes, setup.mode)
        began, cpu, start = time.perf_counter(), time.process_time(), 0.0
        for step in model.train(prepared.train, setup.steps, setup.batch_size, setup.learning_rate, cell.seed):
            if step == 1:
                start = model.per_dimension(normal, integrated=True)
        trained, trained_cpu = time.perf_counter(), time.process_time()
        score = partial(detection, maps=prepared.test, labels=prepared.labels, masks=prepared.masks)
        log_prob = model.per_dimension(normal)
        integrated = model.per_dimension(normal, integrated=True) if cell.variant == "predicted" else log_prob
        metrics = {"log_prob": log_prob, "log_likelihood": integrated, "log_likelihood_start": start}
        metrics |= score(model.latent_map)
        of_features = score(model.feature_map if event == "location" else None)
        metrics |= {f"{name}_log_det": value for name, value in of_features.items()}
        disagreement = model.disagreement(normal)
    return {
        "metrics": metrics,
        "disagreement": disagreement,
        "event": event,
        "flow": LIBRARIES[cell.library].text,
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
