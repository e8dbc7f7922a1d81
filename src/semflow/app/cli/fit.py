"""`semflow fit`: a folder of good images to a run directory."""

__all__ = ["run"]

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from semflow.data import ImageDataset, duplicates, open_dataset
from semflow.detectors.conformal import check_count
from semflow.errors import ConfigError, DataError
from semflow.files import refuse_unwritable
from semflow.recipes import RECIPES, resolve_settings
from semflow.training import Processes, automatic_count, fit
from semflow.training.checkpoint import CHECKPOINT, CONFIG, LOG

from .calibrate import say_calibration
from .console import say
from .inputs import CACHE_BYTES, verified, warn_of_leaks
from .options import Fit
from .together import together


def run(options: Fit) -> None:
    """Check everything that can be checked, then train; where torchrun has started several processes, together."""
    with together(options.device) as (processes, device):
        _run(options, processes, device)


def _run(options: Fit, processes: Processes, device: torch.device) -> None:
    processes.first(lambda: _check_output(options))
    if options.recipe not in RECIPES:
        raise ConfigError(f"--recipe must be one of {', '.join(RECIPES)}, but got {options.recipe!r}")
    recipe = RECIPES[options.recipe]
    given = {"backbone": options.backbone, "image_size": options.image_size}
    common: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    common |= {"backbone.weights": options.weights, "seed": options.seed}
    arguments = resolve_settings(recipe, {**_words(options.set), **common})
    dataset = open_dataset(options.data, "train", arguments["image_size"], category=options.category)
    calibration = _calibration(options, dataset)
    detector = recipe(**arguments)
    _verify(dataset, options.workers == 0, processes)
    first = processes.rank == 0
    if first:
        warn_of_leaks(options.data, options.category)
        many = "" if processes.count == 1 else f", {processes.count} processes"
        held = f" and {calibration} held out" if isinstance(calibration, int) and calibration else ""
        trained = len(dataset) - (calibration if isinstance(calibration, int) else 0)
        say(f"training {options.recipe} on {trained} images of {options.data}{held}, {device.type}{many}")
    with _nothing_half_made(options.output) if first else nullcontext():
        fit(
            detector,
            dataset,
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            calibration=calibration,
            false_alarm_rate=options.false_alarm_rate,
            output=options.output,
            resume=options.resume,
            workers=options.workers,
            device=device,
            processes=processes,
        )
    if first:
        say_calibration(detector.calibration)
        say(f"wrote {options.output}")
        say(f"next: semflow predict --model {options.output} --input IMAGES --output RESULTS")


def _calibration(options: Fit, dataset: ImageDataset) -> int | ImageDataset:
    """The good images to calibrate on: those given, or how many of the data are held out."""
    if options.calibration is None:
        held = automatic_count(len(dataset)) if options.hold_out is None else options.hold_out
        if held or options.false_alarm_rate is not None:
            check_count(held, options.false_alarm_rate)
        return held
    if options.hold_out:
        raise ConfigError(
            f"--hold-out {options.hold_out} does not go with --calibration {options.calibration}, expected one of them"
        )
    given = verified(open_dataset(options.calibration, "train", dataset.image_size))
    check_count(len(given), options.false_alarm_rate)
    pairs = duplicates(given.paths, dataset.paths)
    if pairs:
        raise DataError(
            f"--calibration {options.calibration}: {pairs[0][0]} is among the images to train on, expected others; "
            "take it out of one of the two"
        )
    return given


def _verify(dataset: ImageDataset, cache: bool, processes: Processes) -> None:
    """Decode every image once, before any work; of several processes each its part."""
    if processes.count == 1:
        verified(dataset, cache=cache)
        return
    dataset.cache = cache and len(dataset) * 3 * dataset.image_size**2 <= CACHE_BYTES
    for index in processes.part(range(len(dataset))):
        dataset[index]
    processes.gather_all(None)


def _words(given: Mapping[str, str]) -> dict[str, Any]:
    """Return words of the command line as Python values, such as 8, 0.1, true, none and 8,16."""
    return {name: _literal(word) for name, word in given.items()}


def _literal(word: str) -> object:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def _check_output(options: Fit) -> None:
    """Say before the work what `semflow.fit` would say after the backbone has been loaded, in terms of the options."""
    output: Path = options.output
    if output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file, expected a new folder for the run")
    occupied = output.is_dir() and any(output.iterdir())
    if occupied and not options.resume:
        kind = "holds a run already" if (output / CONFIG).exists() else "is not empty"
        hint = "go on with it by --resume, or " if (output / CONFIG).exists() else ""
        raise DataError(f"--output {output} {kind}, expected a new folder; {hint}choose another folder")
    refuse_unwritable(output)


@contextmanager
def _nothing_half_made(output: Path) -> Iterator[None]:
    """Take a run away again that has failed before its first checkpoint: there is nothing in it to go on with.

    An interrupted run stays: it is what --resume goes on with.
    """
    was_there, had_config = output.exists(), (output / CONFIG).exists()
    try:
        yield
    except Exception:
        if not had_config and not (output / CHECKPOINT).exists():
            for name in (CONFIG, LOG):
                (output / name).unlink(missing_ok=True)
            if not was_there and output.is_dir() and not any(output.iterdir()):
                output.rmdir()
        raise
