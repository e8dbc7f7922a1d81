"""`semflow fit`: train a detector on a folder of good images and save it to a run directory."""

import ast
import inspect
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from semflow._validation import counted
from semflow.data import ImageDataset
from semflow.detectors import Detector
from semflow.detectors.conformal import RATES
from semflow.errors import ConfigError
from semflow.recipes import RECIPES, plain_settings, resolve_settings
from semflow.training import LOGGERS, Processes, TensorBoard, automatic_count, fit, held_for_choice, optional_flows
from semflow.training.checkpoint import CHECKPOINT, CONFIG, LOG
from semflow.training.frames import taken_for_good
from semflow.training.holdout import LEAST
from semflow.training.loggers import STATE

from .calibrate import report_calibration
from .command import printed, unused
from .console import say
from .inputs import cache_small, exit_code, launched, note_of, open_normal, warn_of_leaks
from .options import Fit, check_numbers

DEFAULT_RECIPE = "memory_flow"
FILE_OPTIONS = ("data", "category", "recipe", "calibration", "hold_out", "false_alarm_rate")
# Recipe arguments that an option sets.
SETTINGS = {
    "backbone.name": "backbone", "backbone.weights": "weights", "image_size": "image_size",
    "training.epochs": "epochs", "training.batch_size": "batch_size",
    "training.precision": "precision", "seed": "seed", "training.seed": "seed",
}  # fmt: skip
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
    for name, value in given.items():
        expected = {"hold_out": int, "false_alarm_rate": float}.get(name, str)
        if type(value) is not expected:
            raise ConfigError(f"{name} in {options.config} must be of type {expected.__name__}, but got {value!r}")
        if getattr(options, name) is None:
            changed: Any = Path(str(value)) if name in ("data", "calibration") else value
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
    settings |= {name: value for name, option in SETTINGS.items() if (value := getattr(options, option)) is not None}
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
    dataset = open_normal(data, arguments["image_size"], "--data", options.category, allow)
    calibration = _calibration(options, dataset)
    detector = RECIPES[str(options.recipe)](**arguments)
    cache_small(dataset, options.workers)
    first = processes.rank == 0
    held_out = calibration if isinstance(calibration, int) else 0
    if first:
        warn_of_leaks(data, options.category)
        count = "" if processes.count == 1 else f", {processes.count} processes"
        count += note_of(dataset.passed_over, dataset.root)
        apart = f" ({held_out} more for calibration)" if held_out else ""
        trained_on = counted(len(dataset) - held_out, "image")
        say(f"training {options.recipe} on {trained_on} of {data}{apart}, {device.type}{count}")
    with _removing_unstarted(output) if first else nullcontext():
        fit(
            detector, dataset, calibration=calibration, false_alarm_rate=options.false_alarm_rate, output=output,
            resume=options.resume, workers=options.workers, device=device, processes=processes, allow_anomalous=allow,
            callbacks=loggers,
        )  # fmt: skip
    if first:
        report_choice(detector, len(dataset) - held_out)
        if calibration is None:  # --hold-out 0 is a choice
            report_too_few(len(dataset), output)
        report_calibration(detector.calibration)
        report_frames(detector)
        say(f"wrote {output}")
        results = unused(output.with_name(f"{output.name}-results"))
        say(f"next: {printed(['predict', '--model', output, '--input', _tests(options, data), '--output', results])}")
    return exit_code(dataset.passed_over) if processes.count == 1 else 0  # torchrun takes others for failures


def _tests(options: Fit, data: Path) -> Path:
    """Return a folder of test images beside those of training, or the data."""
    root = data / options.category if options.category and (data / options.category).is_dir() else data
    above = [root, *(root.absolute().parents[:2] if root.name in ("train", "good") else ())]
    return next((folder / "test" for folder in above if (folder / "test").is_dir()), root)


def report_choice(detector: Detector, images: int) -> None:
    """Print whether flows that may be left out are used after training on a number of images, and why."""
    for flow in optional_flows(detector)[:1]:  # the choice is the same for all
        if held_for_choice(images):
            gain = f"{flow.gain:+.2f} in the mean of image AUROC and AUPRO on held-out images with synthetic defects"
            say(f"the flow is {'used' if flow.used else 'left out'}: {gain}")
        else:
            say("the flow is left out: there are too few images to measure its gain")


def report_too_few(images: int, output: Path) -> None:
    """Print why predict will not decide after training on a number of images, and what to do."""
    few = f"{counted(images, 'image')} {'is' if images == 1 else 'are'} too few to hold {LEAST} out of training"
    say(
        f"no decisions yet: {few}, as the highest default false-alarm rate, {100 * RATES[-1]:g} %, needs; photograph "
        f"{LEAST} or more other good parts, then: {printed(['calibrate', '--model', output, '--data', 'FOLDER'])}"
    )


def report_frames(detector: Detector) -> None:
    """Print whether frames without a part are told from good images."""
    frames = detector.provenance.frames
    taken = taken_for_good(frames, detector.false_alarm_rate)
    if taken:
        parts = (f"{name} ({100 * frames[name]['good_images_as_high']:.3g} %)" for name in taken)
        say(
            "caution: frames without a part score like good images, of which so many score as high: "
            f"{', '.join(parts)}; train for longer, or check the images by other means"
        )
    elif frames:
        say(f"frames without a part ({', '.join(frames)}) score higher than good images")


def _calibration(options: Fit, dataset: ImageDataset) -> int | ImageDataset | None:
    """Return the calibration images, how many training images to hold out, or None if there are too few."""
    if options.calibration is None:
        return (automatic_count(len(dataset)) or None) if options.hold_out is None else options.hold_out
    if options.hold_out:
        raise ConfigError(f"--hold-out must be left out with --calibration, but got {options.hold_out}")
    return open_normal(
        options.calibration, dataset.image_size, "--calibration", allow_anomalous=options.allow_anomalous
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
    """Return options that are not None, and recipe arguments, as the text of a TOML file."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return tomli_w.dumps({k: v for k, v in given.items() if v is not None} | plain_settings(arguments))
