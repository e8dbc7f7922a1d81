"""Training a detector on pictures of good parts."""

import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semflow.data import Batch
from semflow.detectors import Detector
from semflow.detectors.conformal import check_count, exact_rate
from semflow.errors import CheckpointError, ConfigError, DataError, TrainingError
from semflow.features import FeatureExtractor
from semflow.synthesis import CutPaste, SyntheticAnomalies

from .cache import NormalImages, unseen
from .checkpoint import Position
from .config import TrainingConfig
from .distributed import ALONE, Processes
from .holdout import calibrate, hold_out
from .loading import Parts, batches, check_device, dealt_batches, split_batches
from .progress import Progress
from .run import Run
from .sharing import shared
from .stepping import adam, check_locations, train_on_batch
from .watch import Watch

__all__ = ["fit"]


def fit(
    detector: Detector,
    dataset: Dataset[Any],
    training: TrainingConfig | None = None,
    *,
    synthesis: CutPaste | Literal["recipe"] | None = "recipe",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    calibration: float | int | Dataset[Any] | None = None,
    false_alarm_rate: float | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    workers: int = 0,
    device: str | torch.device = "cpu",
    checkpoint_seconds: float = 60.0,
    cache_bytes: int = 2**31,
    progress: bool = True,
    on_epoch: Callable[[Detector, int], object] | None = None,
    processes: Processes = ALONE,
) -> Detector:
    """Train a detector on normal images; the model of the last epoch is the result, always.

    Standardisation is fitted first, then the flows are trained, then the score's constants are taken from them.
    All draws come from (seed, epoch, position), so a resumed run ends where an uninterrupted one does.

    Args:
        detector: from a recipe, or put together by hand.
        dataset: normal images, a map-style data set of `semflow.data.Sample`.
        training: training settings; None takes those of the detector's recipe.
        synthesis: synthetic anomalies; `recipe` takes those of the detector's recipe, None trains on normal images
            alone.
        epochs, batch_size, learning_rate, seed: override these fields of `training`. The initial weights depend on the
            recipe's own seed.
        calibration: normal images to calibrate on after training, see `Calibration`: a number or a fraction of
            `dataset` to hold out of training, or a data set of others, none of which may be trained on. None trains on
            all, and leaves no p-values.
        false_alarm_rate: of the calibration; None takes the lowest of 1, 5 and 10 % that its images allow.
        output: run directory; None keeps the result in memory only.
        resume: go on from the checkpoint in `output`, or start if there is none; the images must be the same.
        workers: processes that load images.
        device: `auto`, `cpu`, `cuda`, ...
        checkpoint_seconds: write a checkpoint after a batch if the last one is older than this.
        cache_bytes: most memory for the backbone's maps of the normal images, on the device: they are computed once if
            they fit. Without synthetic anomalies training itself then needs no backbone.
        progress: show progress; plain lines where the output is no terminal.
        on_epoch: called with the detector and the number of epochs done after each of them, to look and not to touch;
            the score has no constants yet (`Detector.fit_score`). With several processes, in each of them.
        processes: that train this detector together, each on its part of every batch: `batch_size` is that of all of
            them, and so are the steps, whatever their number. All call `fit` alike; the first alone reads and writes
            `output`.

    Returns:
        The same detector, trained, in eval mode.

    Raises:
        ConfigError, DataError, DeviceError: an argument does not fit.
        CheckpointError: `output` holds a run already, or one of other options or images, or cannot be written.
        TrainingError: a loss or a gradient is not finite; the step is named, and the last checkpoint is kept.
        ProcessError: another process has failed.

    Example:
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(4)]
        >>> detector = fit(detector, good, epochs=2, batch_size=2, progress=False)
        >>> detector.predict(torch.rand(2, 3, 32, 32)).score.shape
        torch.Size([2])
    """
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    training = training or detector.provenance.training or TrainingConfig()
    training = replace(training, **{k: v for k, v in given.items() if v is not None})
    paste = detector.provenance.synthesis if isinstance(synthesis, str) else synthesis
    detector.to(check_device(device))
    if not detector.trainable():
        raise ConfigError("detector must have parameters to train, but all of its parts are fixed")
    check_locations(detector, training)
    dataset, held_out = hold_out(dataset, calibration, training.seed)
    if held_out is not None:
        check_count(len(cast(Sized, held_out)), false_alarm_rate)
    images = len(cast(Sized, dataset))
    if training.batch_size < processes.count:
        raise ConfigError(
            f"batch_size must be at least the number of processes, {processes.count}, as each takes a part of every "
            f"batch, but got {training.batch_size}; take a larger one or fewer processes"
        )
    optimizer = adam(detector, training)
    dealt = batches(dataset, training.batch_size, workers, dealt_batches(images, training.batch_size, processes))
    features = cast(FeatureExtractor, detector.features)
    normal = NormalImages(features, dealt, _device(detector), cache_bytes, processes)
    run = Run(
        None if output is None else Path(output),
        detector,
        optimizer,
        training,
        paste,
        images,
        checkpoint_seconds,
        processes,
    )
    at = run.open(resume)
    if at is None:
        _same_rate(cast(Path, run.folder), detector, false_alarm_rate)
        _same_images(cast(Path, run.folder), Position(fingerprint=run.fingerprint()), normal.fingerprint())
        return detector.eval()
    if at.epoch == at.step == 0:
        detector.prepare(normal, processes.gather)
    if paste is None:
        normal.fill()
    if run.folder is not None:
        _same_images(run.folder, at, normal.fingerprint())
    if held_out is not None:  # now, and not when training has ended
        known = detector.provenance.fingerprints + (normal.fingerprints() if held_out is calibration else ())
        for _ in unseen(batches(held_out, training.batch_size, workers), known):
            pass
    source = SyntheticAnomalies(dataset, paste, seed=training.seed)
    parts = split_batches(images, training.batch_size, processes)
    loader = batches(source, training.batch_size, workers, parts)
    watch = Watch(training.clip, every=1 if _device(detector).type == "cpu" else 32)
    job = _Job(detector, training, paste is not None, optimizer, loader, parts, source, normal, run, processes, watch)
    show = progress and processes.rank == 0
    with (
        _diverging(training, run),
        shared(detector, processes),
        Progress(training.epochs, at.epoch, show=show) as display,
    ):
        while at.epoch < training.epochs:
            record = _train_epoch(job, at, display)
            display.epoch(record)
            if on_epoch is not None:
                on_epoch(detector, at.epoch + 1)
            run.log(record)
            at = Position(at.epoch + 1, fingerprint=at.fingerprint)
            if run.due():
                run.save(at)
    detector.eval()
    normal.keep = False
    detector.fit_score(normal, processes.gather)
    if held_out is not None:
        calibrate(
            detector, held_out, false_alarm_rate, batch_size=training.batch_size, workers=workers, processes=processes
        )
    fingerprints = detector.provenance.fingerprints + normal.fingerprints()
    detector.provenance = replace(detector.provenance, fingerprints=fingerprints)
    fingerprint = normal.fingerprint()
    processes.first(lambda: run.finish(fingerprint))
    return detector


@dataclass(frozen=True)
class _Job:
    """All that an epoch needs."""

    detector: Detector
    training: TrainingConfig
    synthetic: bool
    optimizer: torch.optim.Optimizer
    loader: DataLoader[Batch]
    parts: Parts
    source: SyntheticAnomalies[Any]
    normal: NormalImages
    run: Run
    processes: Processes
    watch: Watch


def _device(detector: Detector) -> torch.device:
    return next(detector.flows.parameters()).device


def _train_epoch(job: _Job, at: Position, display: Progress) -> dict[str, float]:
    """The rest of an epoch, from where training stands; the line of the log, with the means of the loss's terms."""
    detector, training, watch, steps = job.detector, job.training, job.watch, len(job.parts)
    detector.train()
    device, began, before = _device(detector), time.monotonic(), at.seconds
    at.sums = at.sums.to(device)
    job.source.set_epoch(at.epoch)
    watch.begin(f" of epoch {at.epoch + 1}", at.steps, at.clipped, at.largest)

    def count() -> None:
        at.steps, at.clipped, at.largest = watch.steps, watch.clipped(), watch.largest()
        at.seconds = before + time.monotonic() - began

    for batch, maps in _with_maps(job, at.step):
        rate = training.learning_rate_at((at.epoch + at.step / steps) / training.epochs)
        for group in job.optimizer.param_groups:
            group["lr"] = rate
        masks = None if batch.anomaly_masks is None else batch.anomaly_masks.to(device)
        masks = masks if job.synthetic else None
        with _naming_images(batch):
            at.sums += train_on_batch(
                detector,
                job.optimizer,
                training,
                batch.images.to(device),
                masks,
                maps,
                seed=(training.seed, at.epoch, at.step),
                watch=watch,
                processes=job.processes,
                batch=min(training.batch_size, job.normal.count - at.step * training.batch_size),
            )
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


def _with_maps(job: _Job, start: int) -> Iterator[tuple[Batch, list[Tensor] | None]]:
    """The batches of an epoch, with their maps where no synthetic anomaly changes the images and they are kept."""
    job.parts.start = start
    for positions, batch in zip(job.parts.batches[start:], job.loader, strict=True):
        maps = None
        if not job.synthetic:
            maps = job.normal.maps([job.source.index(p) for p in positions or [0]])
        yield batch, maps


def _same_images(folder: Path, at: Position, fingerprint: str) -> None:
    """Note the images that training begins with; refuse to go on with others."""
    if at.fingerprint and at.fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: cannot resume, it was started with images of fingerprint {at.fingerprint[:12]}, but now got "
            f"{fingerprint[:12]}; give it the same images, or start a new run"
        )
    at.fingerprint = fingerprint


def _same_rate(folder: Path, detector: Detector, asked: float | None) -> None:
    """Refuse a rate that a finished run does not decide at: it would be passed over in silence."""
    found = detector.false_alarm_rate
    if asked is not None and (found is None or exact_rate(asked) != exact_rate(found)):
        raise CheckpointError(
            f"{folder}: ended already, with false_alarm_rate = {found}, but now got {asked}; calibrate the finished "
            "model at another rate, or leave it out"
        )


@contextmanager
def _naming_images(batch: Batch) -> Iterator[None]:
    """A loss that is not finite because of an image names the image."""
    try:
        yield
    except TrainingError:
        for image, path in zip(batch.images, batch.paths, strict=True):
            if not image.isfinite().all():
                raise DataError(f"{path}: expected finite pixels in [0, 1], but one is not; leave it out") from None
        raise


@contextmanager
def _diverging(training: TrainingConfig, run: Run) -> Iterator[None]:
    """What to do about a loss that is not finite."""
    try:
        yield
    except TrainingError as error:
        advice = f"learning_rate {training.learning_rate} may be too large: start a new run with a smaller one"
        raise TrainingError(f"{error}; {advice}{run.kept()}") from None
