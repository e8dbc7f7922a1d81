"""Training a detector on normal images."""

import numbers
import time
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from semflow._defaults import own_defaults
from semflow.data import Batch
from semflow.detectors import Detector
from semflow.detectors.collapse import ADVICE
from semflow.detectors.conformal import check_count
from semflow.detectors.inputs import check_precision
from semflow.errors import CheckpointError, ConfigError, DataError, TrainingError
from semflow.features import FeatureExtractor
from semflow.files import hash_tensors
from semflow.synthesis import CutPaste, SyntheticAnomalies

from .asked import Asked
from .cache import NormalImages
from .callbacks import Callback, after_epoch, begin, closing, end
from .checkpoint import Position
from .choice import FlowChoice, held_for_choice, optional_flows
from .config import TrainingConfig
from .distributed import ALONE, Processes
from .frames import record_frames, score_frames
from .holdout import held_out_batches, hold_out
from .labels import refuse_anomalous
from .loading import Parts, batches, check_device, checked, dealt_batches, split_batches
from .progress import Progress
from .run import BACKBONE, Run
from .settling import check_number_of_images, check_sizes, remember_images, settle
from .sharing import shared, tilted
from .stepping import adam, check_steps, train_on_batch
from .watching import Watch


@own_defaults()
@closing
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
    precision: Literal["float32", "bf16"] | None = None,
    calibration: float | int | Dataset[Any] | None = None,
    false_alarm_rate: float | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    workers: int = 0,
    device: str | torch.device = "auto",
    checkpoint_seconds: float = 60.0,
    cache_bytes: int = 2**31,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    processes: Processes = ALONE,
    allow_anomalous: bool = False,
) -> Detector:
    """Train a detector on normal images, and return it in eval mode. It is always the model of the last epoch.

    Standardization is fitted first, then the flows are trained. An `OptionalFlow` is kept or left out by images that it
    was not trained on (see `choose_flow`), and one that gains little after a quarter of the epochs is left out at once.
    Last, bases are fitted (see `Detector.fit_base`), and the constants
    of the score. With `epochs=0`, no gradient steps are made. All random draws depend on (seed, epoch, position), so a
    resumed run ends like an uninterrupted one.

    Args:
        detector: detector of a recipe, or assembled by hand.
        dataset: normal images, a map-style data set of `semflow.data.Sample`.
        training: training settings; None takes those of the detector's recipe.
        synthesis: synthetic anomalies; `recipe` takes those of the detector's recipe, None trains without any.
        epochs: overrides `training.epochs`.
        batch_size: overrides `training.batch_size`.
        learning_rate: overrides `training.learning_rate`.
        seed: overrides `training.seed`. The initial weights depend on the recipe's own seed.
        precision: overrides `training.precision`.
        calibration: normal images for calibration after training, see `Calibration`: a number or a fraction of
            `dataset` to hold out of training, or a data set of other images. None gives no p-values.
        false_alarm_rate: rate of the calibration; None takes the lowest of 1, 5 and 10 % that its images allow.
        output: run directory; None keeps the result in memory only.
        resume: continue from the checkpoint in `output`, or start if there is none; images and settings must be the
            same. A finished run is trained further if `epochs` is larger, from its weights and with a new optimizer,
            and is calibrated if it is not yet.
        workers: processes that load images.
        device: `auto` (CUDA if available), `cpu`, `cuda`, ...; the detector stays there.
        checkpoint_seconds: smallest time between two checkpoints, which are written after a batch.
        cache_bytes: memory limit for the backbone's maps of the normal images, on the device. If they fit, they are
            computed once; training without synthetic anomalies then does not run the backbone.
        progress: show progress, as plain lines if the output is no terminal.
        callbacks: called before training, after each epoch and at the end, see `Callback`; `TensorBoard`, `MLflow` and
            `WandB` log the curves.
        processes: processes that train together, each on its part of every batch. All call `fit` with the same
            arguments and compute the gradients of a single process, up to rounding; only the first reads and writes
            `output`.
        allow_anomalous: train and calibrate on images with an anomalous label or mask too.

    Raises:
        CheckpointError: If `output` holds a run already, or one with other settings or images, or cannot be written.
        DataError: If an image is labeled anomalous; the message names the first one.
        ShapeError: If images have another size than a recipe's detector, or masks another size than their images.
        TrainingError: If a loss or a gradient is not finite; the last checkpoint is kept.

    Example:
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(4)]
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> fit(detector, good, epochs=1, batch_size=2, progress=False).training
        False
    """
    given: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "precision": precision
    }  # fmt: skip
    training = training or detector.provenance.training or TrainingConfig()
    if epochs is not None:
        given["steps"] = None
    training = replace(training, **{k: v for k, v in given.items() if v is not None or k == "steps"})
    paste = detector.provenance.synthesis if isinstance(synthesis, str) else synthesis
    detector.to(check_device(device))
    check_precision(detector.reference)
    dataset = checked(dataset)
    if calibration is not None and not isinstance(calibration, numbers.Real):
        calibration = checked(calibration, "calibration")
    labeled = allow_anomalous or refuse_anomalous(dataset)
    dataset, held_out = hold_out(dataset, calibration, training.seed, false_alarm_rate)
    if held_out is not None:
        check_count(len(cast(Sized, held_out)), false_alarm_rate)
    check_sizes(detector, dataset, held_out)
    images = len(cast(Sized, dataset))
    check_number_of_images(detector, images)
    optional = optional_flows(detector)
    for flow in optional:
        flow.use(True)  # it may have been left out before
    judges = held_for_choice(images) if optional else []
    trained_on = sorted(set(range(images)) - set(judges))
    training = training.for_images(len(trained_on))
    if training.epochs and not detector.trainable():
        raise ConfigError(f"epochs must be 0 for a detector without trainable parameters, but got {training.epochs}")
    check_steps(detector, training)
    if training.batch_size < processes.count:
        raise ConfigError(
            f"batch_size must be at least the number of processes, {processes.count}, but got {training.batch_size}"
        )
    optimizer = adam(detector, training)
    dealt = batches(dataset, training.batch_size, workers, dealt_batches(images, training.batch_size, processes))
    features = cast(FeatureExtractor, detector.features)
    normal = NormalImages(features, dealt, detector.device, cache_bytes, processes, allow_anomalous)
    settings: dict[str, Any] = {"training": asdict(training), "synthesis": paste and asdict(paste), "images": images}
    if judges:
        settings["held_for_choice"] = len(judges)
    if output is not None:
        settings[BACKBONE] = hash_tensors(detector.features.state_dict())
    folder = None if output is None else Path(output)
    run = Run(folder, detector, optimizer, settings, checkpoint_seconds, processes)
    at = run.open(resume)
    batch = training.batch_size
    steps: dict[str, Any] = {"batch_size": batch, "workers": workers, "processes": processes}
    asked = Asked(calibration, held_out, false_alarm_rate, {**steps, "allow_anomalous": allow_anomalous})
    if at is None or at.epoch or at.step:  # a run that is resumed
        asked.check(run, finished=at is None)
    begin(callbacks, detector, run.start())
    if at is None:
        _check_images(cast(Path, folder), run.fingerprint(), normal.fingerprint())
        asked.calibrate(run)
        return end(callbacks, detector.eval())
    for flow in optional:
        flow.use(True)  # a finished model may have left it out
    if at.epoch == at.step == 0:
        detector.prepare(normal, processes.gather)
    if paste is None:
        normal.fill()
    if folder is not None or not labeled:
        _check_images(folder, at.fingerprint, normal.fingerprint())
        at.fingerprint = normal.fingerprint()
    if held_out is not None:  # before training, not after it
        known = detector.provenance.fingerprints + (normal.fingerprints() if held_out is calibration else ())
        for _ in held_out_batches(held_out, known, batch, workers, ALONE, allow_anomalous):
            pass
    run.begin()
    source = SyntheticAnomalies(Subset(dataset, trained_on), paste, seed=training.seed)
    parts = split_batches(len(trained_on), training.batch_size, processes, training.accumulate)
    loader = batches(source, training.batch_size, workers, parts)
    every = 1 if detector.device.type == "cpu" else 32
    watch = Watch(training.clip, every, lambda: f"; use a learning_rate below {training.learning_rate}{run.kept()}")
    job = _Job(run, training, loader, parts, source, trained_on, paste is not None, normal, watch)
    choice = FlowChoice(detector, dataset, judges, training, processes)
    show = progress and processes.rank == 0
    with (
        tilted(detector, training.tilt),
        shared(detector, processes),
        Progress(training.epochs, at.epoch, show) as display,
    ):
        while at.epoch < training.epochs and (at.step or choice.promises(at.epoch)):
            record = _train_epoch(job, at, display)
            display.epoch(record)
            run.log(record)
            at = Position(at.epoch + 1, fingerprint=at.fingerprint)
            after_epoch(callbacks, detector, record, partial(run.save, at))
            if run.due():
                run.save(at)
    detector.eval()
    choice.make()
    scores = settle(detector, normal)
    advice = f"use a learning_rate below {training.learning_rate} in a new run" if training.epochs else ADVICE
    frames = score_frames(detector, scores, normal, advice)
    asked.calibrate(run, finished=False)
    record_frames(detector, scores, frames)
    remember_images(detector, normal)
    fingerprint = normal.fingerprint()
    processes.first(lambda: run.finish(fingerprint))
    return end(callbacks, detector)


@dataclass(frozen=True)
class _Job:
    run: Run
    training: TrainingConfig
    loader: DataLoader[Batch]
    parts: Parts
    source: SyntheticAnomalies[Any]
    trained_on: list[int]
    synthetic: bool
    normal: NormalImages
    watch: Watch


def _train_epoch(job: _Job, at: Position, display: Progress) -> dict[str, float]:
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
        known = [] if job.synthetic else [job.trained_on[job.source.index(p)] for p in positions or [0]]
        maps = job.normal.maps(known) if known else None
        rate = training.learning_rate_at((at.epoch + at.step / steps) / training.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        masks = batch.anomaly_masks.to(device) if job.synthetic and batch.anomaly_masks is not None else None
        images, seed = batch.images.to(device), (training.seed, at.epoch, at.step)
        size = min(training.images_per_step, len(job.trained_on) - at.step * training.images_per_step)
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


def _check_images(folder: Path | None, before: str, now: str) -> None:
    """Raise CheckpointError if a run is resumed with other images."""
    if before and before != now:
        raise CheckpointError(
            f"{folder} must be resumed with images of fingerprint {before[:12]}, but got {now[:12]}; start a new run"
        )
