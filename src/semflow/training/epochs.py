"""One epoch of training."""

import time
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from semflow._devices import to_device
from semflow.data import Batch
from semflow.errors import DataError, TrainingError
from semflow.synthesis import SyntheticAnomalies

from .cache import NormalImages
from .checkpoint import Position
from .config import TrainingConfig
from .loading import Parts
from .progress import Progress
from .run import Run
from .stepping import train_on_batch
from .watching import Watch


@dataclass(frozen=True)
class Job:
    """Training of a detector: its images, and what the steps need."""

    run: Run
    training: TrainingConfig
    loader: DataLoader[Batch]
    parts: Parts
    source: SyntheticAnomalies[Any]
    synthetic: bool
    normal: NormalImages
    watch: Watch


def train_epoch(job: Job, at: Position, display: Progress) -> dict[str, float]:
    """Train the rest of an epoch; return its line of the log, with the means of the loss's terms."""
    detector, optimizer, training, watch = job.run.detector, job.run.optimizer, job.training, job.watch
    detector.train()
    device, began, before, steps = detector.device, time.monotonic(), at.seconds, len(job.parts)
    at.sums = at.sums.to(device)
    job.source.set_epoch(at.epoch)
    watch.begin(f" of epoch {at.epoch + 1}", at.steps, at.clipped, at.largest)

    def count() -> None:
        watch.check()
        at.steps, at.clipped, at.largest = watch.steps, watch.clipped, watch.largest
        at.seconds = before + time.monotonic() - began

    job.parts.start = at.step
    for positions, batch in zip(job.parts.batches[at.step :], job.loader, strict=True):
        # Maps of images that synthesis does not change may be known.
        known = [job.source.index(p) for p in positions or [0]]
        maps = None if job.synthetic or job.source.augment else job.normal.maps(known)
        rate = training.learning_rate_at((at.epoch + at.step / steps) / training.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        masks = batch.anomaly_masks if job.synthetic else None
        masks = masks if masks is None else to_device(masks, device)
        images, seed = to_device(batch.images, device), (training.seed, at.epoch, at.step)
        size = min(training.images_per_step, len(job.source) - at.step * training.images_per_step)
        try:
            at.sums += train_on_batch(
                detector, optimizer, training, images, masks, maps, seed, watch, job.run.processes, size
            )
        except TrainingError:
            for image, path in zip(batch.images, batch.paths, strict=True):
                if not image.isfinite().all():
                    raise DataError(f"{path} must have finite pixels, but got inf or NaN; remove it") from None
            raise
        at.step += 1
        display.step(at.epoch, at.step, steps)
        if at.step < steps and job.run.due():
            count()
            job.run.save(at)
    count()
    means = (at.sums / steps).tolist()
    return {
        "epoch": at.epoch + 1,
        **dict(zip(("loss", "nll", "bce", "kl"), means, strict=True)),
        "learning_rate": rate,
        "steps": at.steps,
        "clipped": at.clipped,
        "largest_gradient": float(f"{at.largest:.4g}"),
        "seconds": round(at.seconds, 3),
    }
