"""Training a detector on normal images."""

from collections.abc import Sequence, Sized
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._defaults import own_defaults
from semflow._tiling import Tiles
from semflow.detectors import Detector
from semflow.detectors.collapse import ADVICE
from semflow.detectors.inputs import check_precision
from semflow.errors import ConfigError
from semflow.files import hash_tensors
from semflow.synthesis import CutPaste, Poisson, SyntheticAnomalies, check_augment

from .asked import Asked
from .augmenting import Copies
from .cache import NormalImages
from .callbacks import Callback, after_epoch, begin, closing, end
from .categories import check_counts
from .checkpoint import Position
from .choice import FlowChoice, optional_flows
from .config import TrainingConfig
from .crossing import Crossing
from .cutting import TrainingTiles, at_once, bounded, in_chunks, take_tiles
from .distributed import ALONE, Processes
from .epochs import Job, train_epoch
from .frames import record_frames, score_frames
from .holdout import CROSS, Given, given_calibration, held_out_batches, hold_out
from .labels import refuse_anomalous
from .loading import batches, check_device, checked, dealt_batches, split_batches
from .progress import Progress
from .regions import region_settings, within
from .run import BACKBONE, Run, check_images
from .settling import check_number_of_images, check_sizes, remember_images, settle
from .sharing import shared, tilted
from .stepping import adam, check_batch, check_steps
from .watching import Watch


@own_defaults()
@closing
def fit(
    detector: Detector,
    dataset: Dataset[Any],
    training: TrainingConfig | None = None,
    *,
    synthesis: CutPaste | Poisson | Literal["recipe"] | None = "recipe",
    tiles: Tiles | None = None,
    region: Tensor | None = None,
    augment: Sequence[str] | str = (),
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    precision: Literal["float32", "bf16"] | None = None,
    calibration: Given = None,
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

    Standardization is fitted first, then the flows are trained. An `OptionalFlow` is left out if it stretches the
    features of normal images too unevenly, which ends the training after a quarter of the epochs, see `choose_flow`.
    Last, bases are fitted (see `Detector.fit_base`), and the constants of the score. With `epochs=0`, no gradient steps
    are made. All random draws depend on (seed, epoch, position), so a resumed run ends like an uninterrupted one.

    Args:
        detector: detector of a recipe, or assembled by hand.
        dataset: normal images, a map-style data set of `semflow.data.Sample`.
        training: training settings; None takes those of the detector's recipe.
        synthesis: synthetic anomalies; `recipe` takes those of the detector's recipe, None trains without any.
        tiles: tiles to cut images of any size into, which the detector then does itself: `predict`, `calibrate` and
            `evaluate` take such images, too. It is fitted to about 512 tiles. None takes whole images.
        region: region of interest of all images, see `Detector.set_region`; None keeps that of the detector.
        augment: random changes of training images by name, see `semflow.synthesis.AUGMENTATIONS`. Bases are then fitted
            to four changed copies of each image, too.
        epochs: overrides `training.epochs`.
        batch_size: overrides `training.batch_size`.
        learning_rate: overrides `training.learning_rate`.
        seed: overrides `training.seed`. The initial weights depend on the recipe's own seed.
        precision: overrides `training.precision`.
        calibration: normal images for calibration after training, see `Calibration`: a number or a fraction of
            `dataset` to hold out of training, or a data set of other images; `cross` trains and calibrates on all, with
            five more trainings if flows are trained (cross-conformal). None gives no p-values.
        false_alarm_rate: rate of the calibration; None takes the lowest of 1, 5 and 10 % that its images allow.
        output: run directory; None keeps the result in memory only.
        resume: continue from the checkpoint in `output`, or start if there is none; images and settings must be the
            same. A finished run is trained further if `epochs` is larger, from its weights and with a new optimizer,
            and is calibrated if it is not yet.
        workers: processes that load images.
        device: `auto` (CUDA if available), `cpu`, `cuda`, ...; the detector stays there.
        checkpoint_seconds: smallest time between two checkpoints, which are written after a batch.
        cache_bytes: limit of the backbone's maps of the normal images, in a temporary file or on the GPU. If they fit,
            they are computed once; training without synthetic anomalies then does not run the backbone.
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
    detector.set_region(detector.region if region is None else region)
    names, dataset = check_augment(augment), checked(dataset)
    calibration = given_calibration(calibration)
    labeled = allow_anomalous or refuse_anomalous(dataset)
    dataset, held_out = hold_out(dataset, calibration, training.seed, false_alarm_rate)
    if held_out is not None:
        check_counts(held_out, false_alarm_rate)
    tiles = take_tiles(detector, tiles, calibration)
    check_sizes(detector, dataset, held_out)
    images = len(cast(Sized, dataset))
    check_number_of_images(detector, images)
    cut = None if tiles is None else TrainingTiles(dataset, tiles, workers, allow_anomalous)
    copies = Copies(detector, names, training.seed)
    optional = optional_flows(detector)
    for flow in optional:
        flow.use(True)  # it may have been left out before
    if cut is not None:  # from here on, images are tiles
        dataset, images = checked(cut), len(cut)
    own, training = training, training.for_images(images)
    if training.epochs and not detector.trainable():
        raise ConfigError(f"epochs must be 0 for a detector without trainable parameters, but got {training.epochs}")
    check_steps(detector, training)
    check_batch(training, processes)
    optimizer = adam(detector, training)
    size, chunked = at_once(tiles, training.batch_size), in_chunks(detector, training, tiles, processes.count)
    dealt = batches(dataset, size, workers, dealt_batches(images, size, processes))
    normal = NormalImages(
        detector.feature_maps, dealt, detector.device, cache_bytes, processes, allow_anomalous, tiles=cut
    )
    settings: dict[str, Any] = {"training": asdict(training), "synthesis": paste and asdict(paste), "images": images}
    settings |= region_settings(detector) | ({"augment": list(names)} if names else {})
    if output is not None:
        settings[BACKBONE] = hash_tensors(detector.features.state_dict())
    folder = None if output is None else Path(output)
    run = Run(folder, detector, optimizer, settings, checkpoint_seconds, processes)
    batch = training.batch_size if tiles is None else 1
    steps: dict[str, Any] = {"workers": workers, "processes": processes, "allow_anomalous": allow_anomalous}
    crossing = None
    if calibration == CROSS:
        same = {**steps, "device": device, "cache_bytes": cache_bytes, "progress": progress}
        same |= {"synthesis": paste, "augment": names}
        crossing = Crossing(detector, dataset, own, lambda *given: fit(*given, **same), workers, progress, copies)
    at = run.open(resume)
    asked = Asked(calibration, held_out, false_alarm_rate, {**steps, "batch_size": batch}, crossing)
    if at is None or at.epoch or at.step:  # a run that is resumed
        asked.check(run, finished=at is None)
    begin(callbacks, detector, run.start())
    if at is None:
        check_images(cast(Path, folder), run.fingerprint(), normal.fingerprint())
        asked.check_images(normal)
        asked.calibrate(run, normal)
        return end(callbacks, detector.eval())
    for flow in optional:
        flow.use(True)  # a finished model may have left it out
    if at.epoch == at.step == 0:
        detector.prepare(normal, processes.gather)
    if paste is None and not names:
        normal.fill()
    if folder is not None or not labeled:
        check_images(folder, at.fingerprint, normal.fingerprint())
        at.fingerprint = normal.fingerprint()
    if held_out is not None:  # before training, not after it
        known = detector.provenance.fingerprints + (normal.fingerprints() if held_out is calibration else ())
        for _ in held_out_batches(held_out, known, batch, workers, ALONE, allow_anomalous):
            pass
    asked.check_images(normal)
    run.begin()
    source = SyntheticAnomalies(within(dataset, detector), paste, seed=training.seed, augment=names)
    parts = split_batches(images, chunked.batch_size, processes, chunked.accumulate)
    loader = batches(source, chunked.batch_size, workers, parts)
    every = 1 if detector.device.type == "cpu" else 32
    watch = Watch(training.clip, every, lambda: f"; use a learning_rate below {training.learning_rate}{run.kept()}")
    job = Job(run, chunked, loader, parts, source, paste is not None, normal, watch)
    choice = FlowChoice(detector, dataset, training, processes, normal.maps)
    show = progress and processes.rank == 0
    with (
        bounded(detector, cut),
        tilted(detector, training.tilt),
        shared(detector, processes),
        Progress(training.epochs, at.epoch, show) as display,
    ):
        while at.epoch < training.epochs and (at.step or choice.promises(at.epoch)):
            record = train_epoch(job, at, display)
            display.epoch(record)
            run.log(record)
            at = Position(at.epoch + 1, fingerprint=at.fingerprint)
            after_epoch(callbacks, detector, record, partial(run.save, at))
            if run.due():
                run.save(at)
    detector.eval()
    choice.make()
    scores = settle(detector, normal, copies)
    advice = f"use a learning_rate below {training.learning_rate} in a new run" if training.epochs else ADVICE
    frames = score_frames(detector, scores, normal, advice)
    fingerprint = normal.fingerprint()
    if crossing is not None and not crossing.alone(detector):  # a killed run goes on with the other models
        record_frames(detector, scores, frames)
        remember_images(detector, normal)
        processes.first(lambda: run.finish(fingerprint))
    asked.calibrate(run, normal, scores, finished=False)
    record_frames(detector, scores, frames)
    remember_images(detector, normal)
    processes.first(lambda: run.finish(fingerprint))
    return end(callbacks, detector)
