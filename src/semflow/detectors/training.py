"""Training a detector on pictures of good parts."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import __version__
from ..data import Batch
from ..errors import CheckpointError, ConfigError
from ..features import FeatureExtractor
from ..synthesis import SyntheticAnomalies
from .cache import NormalImages
from .checkpoint import (
    CHECKPOINT,
    CONFIG,
    LOG,
    MODEL,
    load_into,
    load_training,
    read_config,
    save_model,
    save_training,
    write_config,
)
from .detector import Detector
from .loading import batches, check_device
from .plan import Training
from .progress import Progress
from .stepping import adam, check_locations, train_on_batch

__all__ = ["fit"]


def fit(
    detector: Detector,
    dataset: Dataset[Any],
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    schedule: Literal["constant", "cosine"] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    workers: int = 0,
    device: str | torch.device = "cpu",
    checkpoint_seconds: float = 60.0,
    cache_bytes: int = 2**31,
    progress: bool = True,
    on_epoch: Callable[[Detector, int], object] | None = None,
) -> Detector:
    """Train a detector on normal images; the model of the last epoch is the result, always.

    Standardisation is fitted first, then the flows are trained, then the score's constants are taken from them.
    All draws come from (seed, epoch, position), so a resumed run ends where an uninterrupted one does.

    Args:
        detector: from a recipe, or put together by hand.
        dataset: normal images, a map-style data set of `semflow.data.Sample`.
        epochs, batch_size, learning_rate, schedule: as in `Training`; None takes the detector's own plan.
        seed: of the synthetic anomalies and of the order of images; the weights' start belongs to the recipe.
        output: run directory; None keeps the result in memory only.
        resume: go on from the checkpoint in `output`, or start if there is none.
        workers: processes that load images.
        device: `auto`, `cpu`, `cuda`, ...
        checkpoint_seconds: write a checkpoint at the end of an epoch if the last one is older than this.
        cache_bytes: most memory for the backbone's maps of the normal images, on the device: they are computed once if
            they fit. Without synthetic anomalies training itself then needs no backbone.
        progress: show progress; plain lines where the output is no terminal.
        on_epoch: called with the detector and the number of epochs done after each of them, to look and not to touch;
            the score has no constants yet (`Detector.fit_score`).

    Returns:
        The same detector, trained, in eval mode.

    Raises:
        ConfigError, DataError, DeviceError: an argument does not fit.
        CheckpointError: `output` holds a run already, or one of other options.
    """
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
    }
    plan = replace(detector.plan, seed=seed, **{k: v for k, v in given.items() if v is not None})
    detector.to(check_device(device))
    if not detector.trainable():
        raise ConfigError("detector must have parameters to train, but all of its parts are fixed")
    check_locations(detector, plan)
    optimizer = adam(detector, plan)
    features = cast(FeatureExtractor, detector.features)
    normal = NormalImages(features, batches(dataset, plan.batch_size, workers), _device(detector), cache_bytes)
    run = None if output is None else Path(output)
    if run is not None and resume and (run / MODEL).exists():
        _same_run(run, _config(detector, plan, len(cast(Sized, dataset))))
        return load_into(detector, run).eval()
    start = _open_run(run, resume, detector, plan, optimizer, len(cast(Sized, dataset)))
    if start == 0:
        detector.prepare(normal)
    if detector.synthesis is None:
        normal.fill()
    source = SyntheticAnomalies(
        dataset,
        kinds=detector.kinds if detector.synthesis is not None else (),
        seed=plan.seed,
        cut_paste=detector.synthesis,
    )
    loader = batches(source, plan.batch_size, workers)
    saved = time.monotonic()
    with Progress(plan.epochs, start, show=progress) as display:
        for epoch in range(start, plan.epochs):
            began = time.monotonic()
            source.set_epoch(epoch)
            record = {"epoch": epoch + 1, **_train_epoch(detector, loader, normal, optimizer, plan, epoch, display)}
            record["seconds"] = round(time.monotonic() - began, 3)
            display.epoch(record)
            if on_epoch is not None:
                on_epoch(detector, epoch + 1)
            if run is not None:
                with (run / LOG).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(record) + "\n")
                if time.monotonic() - saved >= checkpoint_seconds:
                    save_training(detector, optimizer, epoch + 1, run)
                    saved = time.monotonic()
    detector.eval()
    normal.keep = False
    detector.fit_score(normal)
    if run is not None:
        save_model(detector, run)
        (run / CHECKPOINT).unlink(missing_ok=True)
    return detector


def _device(detector: Detector) -> torch.device:
    return next(detector.flows.parameters()).device


def _train_epoch(
    detector: Detector,
    loader: DataLoader[Batch],
    normal: NormalImages,
    optimizer: torch.optim.Optimizer,
    plan: Training,
    epoch: int,
    display: Progress,
) -> dict[str, float]:
    """One pass over the positions of an epoch; the means of the loss's terms."""
    detector.train()
    device = _device(detector)
    sums: Tensor | None = None
    for step, (batch, maps) in enumerate(_with_maps(detector, loader, normal)):
        rate = plan.learning_rate_at((epoch + step / len(loader)) / plan.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        masks = None if batch.anomaly_masks is None else batch.anomaly_masks.to(device)
        masks = masks if detector.synthesis is not None else None
        seed = (plan.seed, epoch, step)
        values = train_on_batch(detector, optimizer, plan, batch.images.to(device), masks, maps, seed)
        sums = values if sums is None else sums + values
        display.step(epoch, step + 1, len(loader))
    means = [0.0] * 4 if sums is None else (sums / len(loader)).tolist()
    if not all(map(math.isfinite, means)):
        raise ConfigError(
            f"learning_rate {plan.learning_rate} made the loss diverge in epoch {epoch + 1}; take a smaller one"
        )
    return {"loss": means[0], "nll": means[1], "bce": means[2], "kl": means[3], "learning_rate": rate}


def _with_maps(
    detector: Detector, loader: DataLoader[Batch], normal: NormalImages
) -> Iterator[tuple[Batch, list[Tensor] | None]]:
    """The batches of an epoch, with their maps where no synthetic anomaly changes the images and they are kept."""
    source, position = cast(SyntheticAnomalies[Any], loader.dataset), 0
    for batch in loader:
        count = len(batch.images)
        maps = None
        if detector.synthesis is None:
            maps = normal.maps([source.index(p) for p in range(position, position + count)])
        yield batch, maps
        position += count


def _open_run(
    run: Path | None,
    resume: bool,
    detector: Detector,
    plan: Training,
    optimizer: torch.optim.Optimizer,
    images: int,
) -> int:
    """Make or reopen the run directory; the number of epochs that are done already."""
    if run is None:
        if resume:
            raise ConfigError("resume needs output, the run directory to go on with, but got None")
        return 0
    config = _config(detector, plan, images)
    if (run / CONFIG).exists():
        if not resume:
            raise CheckpointError(f"{run}: holds a run already; go on with it by resume, or choose another directory")
        _same_run(run, config)
        if not (run / CHECKPOINT).exists():
            (run / LOG).unlink(missing_ok=True)
            return 0
        done = load_training(detector, optimizer, run)
        lines = (run / LOG).read_text(encoding="utf-8").splitlines(keepends=True) if (run / LOG).exists() else []
        (run / LOG).write_text("".join(lines[:done]), encoding="utf-8")
        return done
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise CheckpointError(f"{run}: expected an empty or new directory for the run, but there are other files in it")
    run.mkdir(parents=True, exist_ok=True)
    write_config(run, config)
    return 0


def _config(detector: Detector, plan: Training, images: int) -> dict[str, Any]:
    """What `config.json` says of a run, as JSON gives it back (tuples become lists)."""
    config = {"version": __version__, **detector.config, "training": asdict(plan), "images": images}
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def _same_run(run: Path, config: dict[str, Any]) -> None:
    """Refuse to resume a run that was started with other options."""
    before = {k: v for k, v in read_config(run).items() if k not in ("format", "version")}
    for key in before.keys() | (config.keys() - {"version"}):
        was, now = before.get(key), config.get(key)
        if was != now and isinstance(was, dict) and isinstance(now, dict):
            key, was, now = next(
                (f"{key}.{k}", was.get(k), now.get(k)) for k in was.keys() | now.keys() if was.get(k) != now.get(k)
            )
        if was != now:
            raise CheckpointError(f"{run}: cannot resume, it was started with {key} = {was}, but now got {now}")
