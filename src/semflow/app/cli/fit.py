"""`semflow fit`: train a detector on a folder of good images and save it to a run directory."""

import ast
import inspect
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tomli_w
import torch

from semflow._validation import counted
from semflow.data import Categories, ImageDataset
from semflow.detectors import Detector
from semflow.errors import ConfigError
from semflow.recipes import RECIPES, plain_settings, resolve_settings
from semflow.training import Processes, automatic_calibration, automatic_count, fit
from semflow.training.categories import fewest
from semflow.training.checkpoint import CHECKPOINT, CONFIG, LOG
from semflow.training.crossing import leaves_one_out
from semflow.training.holdout import CROSS
from semflow.training.loggers import LOGGERS, STATE, TensorBoard

from .calibrate import report_calibration
from .command import printed, unused
from .console import say
from .fit_reports import report_choice, report_frames, report_resizing, report_too_few
from .inputs import (
    cache_small,
    exit_code,
    launched,
    names_of,
    note_of,
    open_normal,
    region_of,
    together,
    warn_of_leaks,
)
from .option_checks import check_numbers
from .options import Fit
from .tiling import tiles_of

DEFAULT_RECIPE = "memory_flow"
FILE_OPTIONS = (
    "data", "category", "categories", "recipe", "calibration", "hold_out", "false_alarm_rate", "resize", "region",
    "augment", "tile", "overlap",
)  # fmt: skip
TYPES = {"hold_out": int, "false_alarm_rate": float, "tile": int, "overlap": int, "categories": list}
# Recipe arguments that an option sets.
SETTINGS = {
    "backbone.name": "backbone", "backbone.weights": "weights", "image_size": "image_size",
    "training.epochs": "epochs", "training.batch_size": "batch_size",
    "training.precision": "precision", "seed": "seed", "training.seed": "seed",
}  # fmt: skip
SIZES = re.compile(r"(-?\d+)(?:x(\d+))?")
WORDS = {"true": True, "false": False, "none": "none"}


def run(options: Fit) -> int:
    """Train, or print the configuration. Processes that torchrun has started train together."""
    with launched(options.device) as (processes, device):
        options, arguments = _resolve(options)
        if options.print_config:
            say(to_toml({name: getattr(options, name) for name in FILE_OPTIONS}, arguments).rstrip())
        elif options.data is None or options.output is None:
            missing = "--data" if options.data is None else "--output"
            raise ConfigError(f"{missing} must be a folder, but got none; see semflow fit --help")
        else:
            return _train(options, arguments, options.data, options.output, processes, device)
        return 0


def _resolve(options: Fit) -> tuple[Fit, dict[str, Any]]:
    """Merge the file of --config, the options and --set, in this order. Return options and recipe arguments."""
    settings = {} if options.config is None else read_config(options.config)
    given: dict[str, Any] = {name: settings.pop(name) for name in FILE_OPTIONS if name in settings}
    if options.calibration is not None or options.hold_out is not None:  # these exclude each other
        given = {name: value for name, value in given.items() if name not in ("calibration", "hold_out")}
    if options.category is not None or options.categories:
        given = {name: value for name, value in given.items() if name not in ("category", "categories")}
    for name, value in given.items():
        expected = TYPES.get(name, str)
        if type(value) is not expected and (name, value) != ("hold_out", CROSS):
            raise ConfigError(f"{name} in {options.config} must be of type {expected.__name__}, but got {value!r}")
        if getattr(options, name) in (None, ()):
            changed: Any = Path(str(value)) if name in ("data", "calibration", "region") else value
            changed = tuple(map(str, value)) if name == "categories" else changed
            options = replace(options, **{name: changed})
    check_numbers(options)
    options = replace(options, recipe=options.recipe or DEFAULT_RECIPE)
    recipe = RECIPES.get(str(options.recipe))
    if recipe is None:
        raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, but got {options.recipe!r}")
    valid = (*FILE_OPTIONS, *inspect.signature(recipe).parameters)
    unknown = next((name for name in settings if name not in valid), None)
    if unknown is not None:
        raise ConfigError(f"names in {options.config} must be of {', '.join(valid)}, but got {unknown!r}")
    given = {**vars(options), "image_size": image_size(options.image_size)}
    settings |= {name: value for name, option in SETTINGS.items() if (value := given[option]) is not None}
    if tiles_of(options) is not None and "image_size" in inspect.signature(recipe).parameters:
        settings["image_size"] = options.tile
    own = parse_settings(recipe, options.set)
    if own.get("training.steps", "none") != "none" and "training.epochs" in {**settings, **own}:
        raise ConfigError(
            f"--epochs must be left out with --set training.steps, which takes their place, but got "
            f"{own['training.steps']} steps and {({**settings, **own})['training.epochs']} epochs"
        )
    settings |= own
    if "training.epochs" in settings:
        settings.setdefault("training.steps", None)  # which would take the place of the epochs
    return options, resolve_settings(recipe, settings)


def _train(
    options: Fit, arguments: dict[str, Any], data: Path, output: Path, processes: Processes, device: torch.device
) -> int:
    allow, loggers = options.allow_anomalous, [LOGGERS[name]() for name in dict.fromkeys(options.log)]
    tiles, regions = tiles_of(options), options.region
    size = arguments["image_size"] if tiles is None else None
    whole = regions is not None and regions.is_file()
    read: dict[str, Any] = {"resize": options.resize or "stretch", "regions": None if whole else regions}
    names = names_of(options)
    dataset = open_normal(data, size, "--data", allow, **read, **names)
    region = region_of(dataset, regions) if whole and regions is not None else None
    detector = RECIPES[str(options.recipe)](**arguments)
    calibration = _calibration(options, dataset, detector, read)
    cache_small(dataset, options.workers)
    if isinstance(calibration, ImageDataset):
        dataset.passed_over += calibration.passed_over
    first = processes.rank == 0
    several = len(dataset.parts) if isinstance(dataset, Categories) else 1
    held_out = several * calibration if isinstance(calibration, int) else 0
    if first:
        warn_of_leaks(data, **names)
        count = "" if processes.count == 1 else f", {processes.count} processes"
        count += note_of(dataset.passed_over, dataset.root)
        apart = f" ({held_out} more for calibration)" if held_out else ""
        apart = " (all for calibration too)" if calibration == CROSS else apart
        trained_on = counted(len(dataset) - held_out, "image") + (f" in tiles of {tiles.size} px" if tiles else "")
        trained_on += f" of {several} {'category' if several == 1 else 'categories'}" if names["categories"] else ""
        say(f"training {options.recipe} on {trained_on} of {data}{apart}, {device.type}{count}")
        report_resizing(dataset)
    with _removing_unstarted(output) if first else nullcontext():
        fit(
            detector, dataset, tiles=tiles, region=region, augment=options.augment or (), calibration=calibration,
            false_alarm_rate=options.false_alarm_rate, output=output, resume=options.resume, workers=options.workers,
            device=device, processes=processes, allow_anomalous=allow, callbacks=loggers,
        )  # fmt: skip
    if first:
        report_choice(detector)
        if calibration is None:  # --hold-out 0 is a choice
            report_too_few(*fewest(dataset), output)
        report_calibration(detector)
        report_frames(detector)
        say(f"wrote {output}")
        results = unused(output.with_name(f"{output.name}-results"))
        name = next(iter(detector.decides_for), None) if names["categories"] else None
        words = ["predict", "--model", output, "--input", _tests(name or options.category, data), "--output", results]
        say(f"next: {printed([*words, *(['--category', name] if name else [])])}")
    return exit_code(dataset.passed_over) if processes.count == 1 else 0  # torchrun takes others for failures


def _tests(category: str | None, data: Path) -> Path:
    """Return a folder of test images beside those of training, or the data."""
    root = data / category if category and (data / category).is_dir() else data
    above = [root, *(root.absolute().parents[:2] if root.name in ("train", "good") else ())]
    return next((folder / "test" for folder in above if (folder / "test").is_dir()), root)


def _calibration(
    options: Fit, dataset: ImageDataset, detector: Detector, read: dict[str, Any]
) -> int | ImageDataset | Literal["cross"] | None:
    """Return calibration images, how many to hold out of training, `cross`, or None if there are too few."""
    if options.calibration is None:
        if options.hold_out is not None:
            return options.hold_out
        images, _ = fewest(dataset)
        if options.tile is not None:  # images that were trained on are not scored whole
            return automatic_count(images) or None
        training = detector.provenance.training
        free = leaves_one_out(detector, trained=bool(training.steps or training.epochs))
        return automatic_calibration(images, options.false_alarm_rate, free)
    if options.hold_out:
        raise ConfigError(f"--hold-out must be left out with --calibration, but got {options.hold_out}")
    return open_normal(
        options.calibration, dataset.image_size, "--calibration", options.allow_anomalous, **read, **together(dataset)
    )


@contextmanager
def _removing_unstarted(output: Path) -> Iterator[None]:
    """Remove a new run directory if training fails before its first checkpoint. An interrupted run is kept."""
    existed, had_config = output.exists(), (output / CONFIG).exists()
    try:
        yield
    except Exception:
        if not had_config and not (output / CHECKPOINT).exists():
            for name in (CONFIG, LOG, STATE):
                (output / name).unlink(missing_ok=True)
            shutil.rmtree(output / TensorBoard.name, ignore_errors=True)
            if not existed and output.is_dir() and not any(output.iterdir()):
                output.rmdir()
        raise


def image_size(text: str | None) -> int | tuple[int, int] | None:
    """Return the size that --image-size names, or None.

    Example:
        >>> image_size("256"), image_size("256x384")
        (256, (256, 384))
    """
    if text is None:
        return None
    found = SIZES.fullmatch(text)
    if found is None:
        raise ConfigError(f"--image-size must be a number of pixels or HEIGHTxWIDTH, but got {text}")
    sides = [int(side) for side in found.groups() if side is not None]
    if min(sides) < 1:
        raise ConfigError(f"--image-size must be at least 1, but got {text}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_settings(recipe: Callable[..., object], words: Mapping[str, str]) -> dict[str, Any]:
    """Convert the words of `--set` to values: Python literals, true, false and none; other words are strings.

    A single value for a setting whose default is a tuple becomes a tuple.

    Example:
        >>> from semflow.recipes import sanflow
        >>> parse_settings(sanflow, {"backbone.strides": "8", "couplings.blocks": "4", "synthesis": "none"})
        {'backbone.strides': (8,), 'couplings.blocks': 4, 'synthesis': 'none'}
    """
    defaults = plain_settings(resolve_settings(recipe, {}))
    values: dict[str, Any] = {}
    for name, word in words.items():
        group, _, field = name.partition(".")
        default = defaults.get(group)
        if field:
            default = default.get(field) if isinstance(default, dict) else None
        value = _literal(word)
        values[name] = (value,) if isinstance(default, list) and not isinstance(value, tuple | list) else value
    return values


def _literal(word: str) -> object:
    try:
        return WORDS[word.lower()] if word.lower() in WORDS else ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"--config {path} must be a readable file, but got {error.strerror or error}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"--config {path} must be a TOML file, but got an error: {error}") from None


def to_toml(options: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return options that are given, and recipe arguments, as the text of a TOML file."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return tomli_w.dumps({k: v for k, v in given.items() if v not in (None, ())} | plain_settings(arguments))
