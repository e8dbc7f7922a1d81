"""What a run directory holds: `config.json`, `log.jsonl`, `checkpoint.safetensors` while training, `model.safetensors`.

Every file is written beside its place and moved there, so that a reader or a killed process never meets half of one.
The metadata of the tensors' files is JSON: the format, recipe, arguments, training plan, versions and the fingerprint
of the training images. Nothing is ever unpickled.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semflow._version import __version__
from semflow.detectors import Detector
from semflow.errors import CheckpointError
from semflow.files import replace_file, writing
from semflow.files.tensors import check_digest, load_tensors, read_about, save_tensors

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "FORMAT",
    "LOG",
    "MODEL",
    "Position",
    "load_into",
    "origin",
    "read_config",
    "read_model_about",
    "read_training",
    "restore_training",
    "save_model",
    "save_run",
    "save_training",
    "versions",
    "write_config",
]

FORMAT = 1
CONFIG, LOG, CHECKPOINT, MODEL = "config.json", "log.jsonl", "checkpoint.safetensors", "model.safetensors"
LARGEST_CONFIG = 2**20
LOG_TERMS = 4


@dataclass
class Position:
    """How far training has come, and what it has counted in the epoch that it is in.

    Args:
        epoch, step: epochs done, and batches of the next.
        sums: (4,), of the loss's terms over these batches.
        steps, clipped, largest: the optimiser's steps, those that were clipped, and the largest norm of a gradient.
        seconds: spent on these batches.
        fingerprint: of the training images.
    """

    epoch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(LOG_TERMS))
    steps: int = 0
    clipped: int = 0
    largest: float = 0.0
    seconds: float = 0.0
    fingerprint: str = ""


def versions() -> dict[str, str]:
    """Of Python and of the packages that the numbers depend on."""
    found = {"semflow": __version__, "python": platform.python_version()}
    for name in ("torch", "timm", "numpy", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def origin(detector: Detector) -> dict[str, Any]:
    """Return recipe, module and arguments of a detector, as JSON gives them back; nothing if it has no recipe."""
    made = detector.provenance
    if not made.recipe:
        return {}
    found: dict[str, Any] = json.loads(
        json.dumps({"recipe": made.recipe, "module": made.module, "arguments": made.arguments})
    )
    return found


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`."""
    text = json.dumps({"format": FORMAT, **config}, indent=2) + "\n"
    replace_file(run / CONFIG, lambda path: path.write_text(text, encoding="utf-8"), durable=True)


def read_config(run: str | Path) -> dict[str, Any]:
    """The `config.json` of a run directory.

    Raises:
        CheckpointError: it is missing, broken or of another format.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     _ = write_config(Path(run), {"recipe": "sanflow", "arguments": {}})
        ...     read_config(run)["recipe"]
        'sanflow'
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{run}: not a run directory, expected {CONFIG} in it; make one with semflow fit")
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError("too large")
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = config["format"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read, {error.strerror}; allow it or copy the run again") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: broken, expected JSON with a format number; fit the model again") from error
    _check_format(found, path)
    for name, kind in (("recipe", str), ("module", str), ("arguments", dict), ("training", dict)):
        if not isinstance(config.get(name, kind()), kind):
            came = type(config[name]).__name__
            raise CheckpointError(f"{path}: broken, expected {name} to be a {kind.__name__} but got a {came}")
    return config


def save_model(detector: Detector, run: str | Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write `model.safetensors`: all weights, the backbone's included, so that a run needs nothing else.

    Args:
        detector: trained.
        run: the directory.
        about: what its metadata says besides the recipe, its arguments and the versions; None keeps what a model that
            is there says.

    Example:
        >>> import tempfile
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> with tempfile.TemporaryDirectory() as run:
        ...     save_model(detector, run).name
        'model.safetensors'
    """
    path = Path(run) / MODEL
    if about is None:
        about = read_about(path) if path.is_file() else {}
        about = {} if "format" in about and not isinstance(about["format"], int) else about
    fingerprints = {"fingerprints": detector.provenance.fingerprints}
    whole = {**about, "format": FORMAT, **origin(detector), **fingerprints, "versions": versions()}
    save_tensors(path, detector.state_dict(), whole)
    return path


def save_run(detector: Detector, run: Path) -> None:
    """Write `config.json` and `model.safetensors` to a new or empty folder, or a new model to a run of this detector.

    Raises:
        CheckpointError: If the folder holds something else or cannot be written.
    """
    with writing(run, "choose another folder", CheckpointError):
        run.mkdir(parents=True, exist_ok=True)
        if not (run / CONFIG).exists():
            if any(run.iterdir()):
                raise CheckpointError(f"{run} must be a new or empty folder, but got one with other files")
            write_config(run, {"version": __version__, **origin(detector), "versions": versions()})
        config = read_config(run)
        for name, value in origin(detector).items():
            if config.get(name) != value:
                raise CheckpointError(f"{run} must hold a detector of {name} {value}, but got {config.get(name)}")
        save_model(detector, run)


def read_model_about(run: str | Path) -> dict[str, Any]:
    """What the metadata of a trained model says: recipe, arguments, training, images, fingerprint, versions.

    Raises:
        CheckpointError: there is no model, or it is broken.
    """
    return read_about(Path(run) / MODEL)


def load_into(detector: Detector, run: str | Path) -> Detector:
    """Load `model.safetensors` into a detector built alike.

    Raises:
        CheckpointError: the file is missing, broken, or of a detector built otherwise.

    Example:
        >>> import tempfile
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> def alike(seed):
        ...     return cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, seed=seed)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     _ = save_model(alike(0), run)
        ...     detector = load_into(alike(1), run)
        >>> torch.equal(detector.predict(images).score, alike(0).predict(images).score)
        True
    """
    path = Path(run) / MODEL
    if not path.is_file():
        unfinished = (Path(run) / CHECKPOINT).is_file()
        advice = "training has not finished, go on with fit --resume" if unfinished else "make one with semflow fit"
        raise CheckpointError(f"{path}: expected a trained model, but there is none; {advice}")
    tensors, about = load_tensors(path, detector.state_dict(), flexible=_flexible(detector))
    _check_format(about.get("format", FORMAT), path)
    _check_finite(tensors, path)
    check_digest(path, tensors, about)
    detector.load_state_dict(tensors, strict=False)
    found = about.get("fingerprints", [])
    fingerprints = tuple(map(str, found)) if isinstance(found, list) else ()
    detector.provenance = replace(detector.provenance, fingerprints=fingerprints)
    return detector


def save_training(detector: Detector, optimizer: torch.optim.Optimizer, at: Position, run: Path) -> None:
    """Write `checkpoint.safetensors`. The frozen backbone is not in it."""
    tensors = {f"model.{n}": x for n, x in detector.state_dict().items() if not n.startswith("features.")}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": torch.as_tensor(x) for name, x in state.items()})
    counts = {k: v for k, v in asdict(at).items() if k != "sums"}
    save_tensors(
        run / CHECKPOINT, {**tensors, "sums": at.sums}, {"format": FORMAT, "at": counts, "versions": versions()}
    )


def read_training(
    detector: Detector, optimizer: torch.optim.Optimizer, run: Path
) -> tuple[dict[str, Tensor], Position]:
    """The tensors of `checkpoint.safetensors` and where training stood.

    Raises:
        CheckpointError: the file is broken or of a detector built otherwise.
    """
    path = run / CHECKPOINT
    model = {n: x for n, x in detector.state_dict().items() if not n.startswith("features.")}
    expected = {f"model.{name}": x for name, x in model.items()}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        expected[f"optimizer.{index}.step"] = torch.zeros(())
        expected[f"optimizer.{index}.exp_avg"] = expected[f"optimizer.{index}.exp_avg_sq"] = parameter
    expected["sums"] = torch.zeros(LOG_TERMS)
    flexible = [f"model.{name}" for name in _flexible(detector)]
    tensors, about = load_tensors(path, expected, ("optimizer.", "sums"), flexible)
    _check_finite(tensors, path)
    check_digest(path, tensors, about)
    sums = tensors.pop("sums", torch.zeros(LOG_TERMS))
    try:
        _check_format(int(about["format"]), path)
        # Of before there were checkpoints within an epoch: the epoch alone.
        found = about["at"] if "at" in about else {**asdict(Position()), "epoch": int(about["epoch"])}
        kinds = {name: type(value) for name, value in asdict(Position()).items() if name != "sums"}
        at = Position(sums=sums, **{name: kind(found[name]) for name, kind in kinds.items()})
        counted = (at.epoch, at.step, at.steps, at.clipped, at.largest, at.seconds)
        if not all(0 <= x < math.inf for x in counted) or any(not _whole_state(tensors, name) for name in tensors):
            raise ValueError("incomplete")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: broken, expected where training stood; start the run anew") from error
    return tensors, at


def restore_training(detector: Detector, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of a checkpoint back into detector and optimiser."""
    model = {n.removeprefix("model."): x for n, x in tensors.items() if n.startswith("model.")}
    detector.load_state_dict(model, strict=False)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            # Fused Adam reads all memory in its own order, and does not notice that a parameter has another.
            moment = torch.empty_like(parameters[int(index)]).copy_(x) if x.dim() else x
            state.setdefault(int(index), {})[key] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Of statistics and constants too: one that is not a number makes every score one."""
    for name, x in tensors.items():
        if x.is_floating_point() and not name.startswith("calibration.") and not x.isfinite().all():
            raise CheckpointError(f"{path}: broken, expected finite numbers in {name}; fit the model again")


def _whole_state(tensors: Mapping[str, Tensor], name: str) -> bool:
    """Adam knows all of a parameter's state or nothing of it."""
    beginning = name.rsplit(".", 1)[0]
    return not name.startswith("optimizer.") or all(
        f"{beginning}.{k}" in tensors for k in ("step", "exp_avg", "exp_avg_sq")
    )


def _flexible(detector: Detector) -> Sequence[str]:
    """Names of buffers whose length belongs to a run, such as calibration scores, and which older runs do not have."""
    return tuple(getattr(detector, "flexible", ()))


def _check_format(found: object, path: Path) -> None:
    if str(found) != str(FORMAT):
        raise CheckpointError(
            f"{path}: made by another version of semflow, expected format {FORMAT} but got {str(found)[:40]}; "
            "fit the model again or use the version that made it"
        )
