"""`semflow fit`: a folder of good images to a run directory."""

__all__ = ["recipe_arguments", "run"]

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from semflow.app.report.files import refuse_unwritable
from semflow.data import ImageDataset, open_dataset
from semflow.errors import ConfigError, DataError
from semflow.recipes import RECIPES, build
from semflow.training import Processes, automatic_count, fit
from semflow.training.checkpoint import CHECKPOINT, CONFIG, LOG

from .calibrate import report_calibration
from .console import say
from .inputs import cache_small, launched, warn_of_leaks
from .options import Fit


def run(options: Fit) -> None:
    """Check everything that can be checked, then train; where torchrun has started several processes, together."""
    with launched(options.device) as (processes, device):
        _run(options, processes, device)


def _run(options: Fit, processes: Processes, device: torch.device) -> None:
    processes.first(lambda: _check_output(options))
    if options.recipe not in RECIPES:
        raise ConfigError(f"--recipe must be one of {', '.join(RECIPES)}, but got {options.recipe!r}")
    recipe = RECIPES[options.recipe]
    defaults = {name: parameter.default for name, parameter in inspect.signature(recipe).parameters.items()}
    common: dict[str, Any] = {
        "backbone": defaults["backbone"] if options.backbone is None else options.backbone,
        "weights": options.weights,
        "image_size": defaults["image_size"] if options.image_size is None else options.image_size,
        "seed": options.seed,
    }
    dataset = open_dataset(options.data, "train", common["image_size"], category=options.category)
    arguments = recipe_arguments(recipe, options.set, reserved=common)
    calibration = _calibration(options, dataset)
    detector = build(options.recipe, **common, **arguments)
    cache_small(dataset, options.workers)
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
        report_calibration(detector.calibration)
        say(f"wrote {options.output}")
        say(f"next: semflow predict --model {options.output} --input IMAGES --output RESULTS")


def _calibration(options: Fit, dataset: ImageDataset) -> int | ImageDataset:
    """Return the calibration images, or how many training images to hold out."""
    if options.calibration is None:
        return automatic_count(len(dataset)) if options.hold_out is None else options.hold_out
    if options.hold_out:
        raise ConfigError(f"--hold-out must be left out with --calibration, but got {options.hold_out}")
    return open_dataset(options.calibration, "train", dataset.image_size)


def recipe_arguments(
    recipe: Callable[..., object], given: Mapping[str, str], reserved: Mapping[str, object]
) -> dict[str, Any]:
    """Words of the command line as arguments of a recipe, each of the type of its default.

    Args:
        recipe: a function whose parameters have defaults.
        given: names and words.
        reserved: what has an option of its own.

    >>> def recipe(blocks: int = 8, synthesis: bool = True, strides: tuple[int, ...] = (8, 16)) -> None: ...
    >>> recipe_arguments(recipe, {"blocks": "4", "synthesis": "false", "strides": "8,16,32"}, {})
    {'blocks': 4, 'synthesis': False, 'strides': (8, 16, 32)}
    >>> recipe_arguments(recipe, {"strides": "8"}, {})
    {'strides': (8,)}
    """
    parameters = inspect.signature(recipe).parameters
    names = [name for name in parameters if name not in reserved]
    arguments = {}
    for name, word in given.items():
        if name in reserved:
            raise ConfigError(f"--set {name} {word}: has an option of its own, expected --{name.replace('_', '-')}")
        if name not in names:
            raise ConfigError(f"--set {name} {word}: expected one of {', '.join(names)}")
        default = parameters[name].default
        value = _literal(word)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if isinstance(default, tuple):
            value = _tuple_like(value, default)
        if default is not None and type(value) is not type(default):
            example = ",".join(map(str, default)) if isinstance(default, tuple) else repr(default)
            raise ConfigError(f"--set {name} {word}: expected {type(default).__name__}, such as {example}")
        arguments[name] = value
    return arguments


def _tuple_like(value: object, default: tuple[object, ...]) -> object:
    """`8`, `8,16` and `[8,16]` as a tuple, where its members are of the type of the default's; else as it came."""
    members = tuple(value) if isinstance(value, tuple | list) else (value,)
    kinds = {type(member) for member in default}
    return members if not kinds or {type(member) for member in members} <= kinds else value


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
