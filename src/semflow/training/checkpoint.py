"""Files of a run directory.

These are `config.json`, `log.jsonl`, `checkpoint.safetensors` during training, `model.safetensors` and `summary.json`.
Every file is written beside its final path and then moved there, so that neither a reader nor a killed process leaves
half a file. Metadata is JSON; nothing is ever unpickled.
"""

import json
import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semflow._tiling import Tiles
from semflow._version import __version__
from semflow.detectors import Detector, Provenance
from semflow.errors import CheckpointError, ConfigError
from semflow.files import replace_file
from semflow.files.tensors import check_digest, float_types, load_tensors, read_about, save_tensors
from semflow.flows import OptionalFlow

FORMAT = 1
CONFIG, LOG, CHECKPOINT, MODEL = "config.json", "log.jsonl", "checkpoint.safetensors", "model.safetensors"
SUMMARY = "summary.json"
FOLDS = "folds.safetensors"
"""Scores by the models of a cross-conformal calibration that are finished, until all are."""
LARGEST_CONFIG = 2**20
NEWER = ("scorer.weights",)  # which models of earlier versions lack


@dataclass
class Position:
    """Progress of training: finished epochs, finished batches (steps) of the current one, and what they add up to."""

    epoch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(4))  # of the loss's terms
    steps: int = 0  # of the optimizer
    clipped: int = 0
    largest: float = 0.0  # norm of a gradient
    seconds: float = 0.0
    fingerprint: str = ""  # of the training images

    def __str__(self) -> str:
        return f"epoch {self.epoch}" if self.step == 0 else f"step {self.step} of epoch {self.epoch + 1}"

    def counts(self) -> dict[str, Any]:
        """Return all fields but `sums`."""
        return {name: value for name, value in asdict(self).items() if name != "sums"}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the numbers."""
    found = {"semflow": __version__, "python": platform.python_version()}
    for name in ("torch", "timm", "numpy", "pillow"):
        with suppress(metadata.PackageNotFoundError):  # such as pillow-simd in place of pillow
            found[name] = metadata.version(name)
    return found


def origin(detector: Detector) -> dict[str, Any]:
    """Return recipe, module and arguments of a detector as JSON values, or nothing if it has no recipe."""
    made = detector.provenance
    found = {"recipe": made.recipe, "module": made.module, "arguments": made.arguments} if made.recipe else {}
    return dict(json.loads(json.dumps(found)))


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`, with the versions in use unless the configuration has its own."""
    made = {"format": FORMAT, "version": __version__, "versions": versions()}
    text = json.dumps({**made, **config}, indent=2) + "\n"
    replace_file(run / CONFIG, lambda path: path.write_text(text, encoding="utf-8"), durable=True)


def read_config(run: str | Path) -> dict[str, Any]:
    """Read the `config.json` of a run directory; raise CheckpointError if it is missing or invalid."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{run} must contain {CONFIG}, but got a path without it; create a run with semflow fit")
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError
        config: dict[str, Any] = json.loads(path.read_bytes())  # whatever mark an editor has added
        found = config["format"]
    except OSError as error:
        raise CheckpointError(f"{path} must be readable, but got {error.strerror}; check its permissions") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} must be JSON with a format number, but got others; fit again") from error
    _check_format(found, path)
    for name, kind in (("recipe", str), ("module", str), ("arguments", dict), ("training", dict)):
        value = config.get(name, kind())
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{path} must hold a {kind.__name__} as {name}, but got {type(value).__name__}; fit the model again"
            )
    return config


def save_model(detector: Detector, run: str | Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write `model.safetensors` with all weights, including those of the backbone, and return its path.

    `about` is further metadata; None keeps the metadata of the model that is replaced.
    """
    path = Path(run) / MODEL
    if about is None:
        about = read_about(path) if path.is_file() else {}
    memory = detector.provenance.memory
    about = {name: value for name, value in about.items() if name != "memory"} | ({"memory": memory} if memory else {})
    made = detector.provenance
    own = {**origin(detector), "fingerprints": made.fingerprints, "frames": made.frames, "versions": versions()}
    for name in ("calibration", "categories", "reading"):
        about.pop(name, None)
    if (reading := {"resize": made.resize, "regions": made.regions}) != {"resize": "stretch", "regions": False}:
        own["reading"] = reading
    if made.categories:
        own["categories"] = made.categories
    if made.tiles is not None:
        own["tiles"] = made.tiles.as_dict()
    if detector.calibration.count and made.calibration:
        own["calibration"] = made.calibration
    save_tensors(path, detector.state_dict(), {**about, "format": FORMAT, **own})
    return path


def summary(detector: Detector) -> dict[str, Any]:
    """Return what `semflow fit` reports at the end of training."""
    calibration = detector.calibration
    flows = [module for module in detector.flows.modules() if isinstance(module, OptionalFlow)]
    return {
        "recipe": detector.provenance.recipe,
        **({"flow_used": flows[0].used, "log_det_spread": flows[0].spread} if flows else {}),
        "calibration_images": calibration.count,
        "false_alarm_rate": calibration.false_alarm_rate,
        "frames": detector.provenance.frames,
    }


def write_summary(detector: Detector, run: Path) -> None:
    """Write `summary.json`."""
    text = json.dumps(summary(detector), indent=2) + "\n"
    replace_file(run / SUMMARY, lambda path: path.write_text(text, encoding="utf-8"))


def load_into(detector: Detector, run: str | Path) -> Detector:
    """Load `model.safetensors` into a detector of the same structure, and return the detector.

    Raises:
        CheckpointError: If the file is missing, damaged, or of a detector of another structure.
    """
    path = Path(run) / MODEL
    if not path.is_file():
        unfinished = (Path(run) / CHECKPOINT).is_file()
        advice = "finish training with semflow fit --resume" if unfinished else "create one with semflow fit"
        raise CheckpointError(f"{path} must be a trained model, but got no file; {advice}")
    _match_types(detector, float_types(path))
    tensors, about = _checked_tensors(path, detector.state_dict(), NEWER, detector.flexible)
    detector.load_state_dict(tensors, strict=False)
    found = about.get("fingerprints", [])
    fingerprints = tuple(map(str, found)) if isinstance(found, list) else ()
    frames, reading = (found if isinstance(found := about.get(name), dict) else {} for name in ("frames", "reading"))
    names = found if isinstance(found := about.get("categories"), list) else []
    if detector.calibration.categories not in (0, len(set(map(str, names)))):
        raise CheckpointError(
            f"{path} must hold the names of the {detector.calibration.categories} categories of its calibration, but "
            f"got {len(names)}; calibrate the model again"
        )
    detector.provenance = replace(
        detector.provenance,
        categories=tuple(map(str, names)),
        fingerprints=fingerprints,
        frames=frames,
        resize="pad" if reading.get("resize") == "pad" else "stretch",
        regions=reading.get("regions") is True,
        calibration=str(about.get("calibration", "")),
        tiles=_tiles(about.get("tiles"), path, detector.provenance),
    )
    return detector


def _tiles(found: Any, path: Path, made: Provenance) -> Tiles | None:
    """Return the tiles of a model's metadata."""
    try:
        tiles = None if found is None else Tiles(**found)
    except (TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{path} must hold a size and an overlap as tiles, but got {str(found)[:80]}; fit the model again"
        ) from error
    if tiles is not None and made.recipe and tiles.size != made.image_size:
        raise CheckpointError(
            f"{path} must hold tiles of its image_size {made.image_size}, but got {tiles.size}; fit the model again"
        )
    return tiles


def _match_types(detector: Detector, types: Mapping[str, torch.dtype]) -> None:
    """Convert the floats of a detector to their types in a file, which may be of a detector in float64."""
    if torch.float64 in types.values():
        if all(dtype == torch.float64 for name, dtype in types.items() if not name.startswith("calibration.")):
            detector.double()  # with what is not in the file
        for name, x in detector.state_dict(keep_vars=True).items():
            if x.is_floating_point() and name in types:
                x.data = x.data.to(types[name])


def save_training(detector: Detector, optimizer: torch.optim.Optimizer, at: Position, run: Path) -> None:
    """Write `checkpoint.safetensors`, without the frozen backbone."""
    tensors = {f"model.{n}": x for n, x in detector.state_dict().items() if not n.startswith("features.")}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": torch.as_tensor(x) for name, x in state.items()})
    about = {"format": FORMAT, "at": at.counts(), "versions": versions()}
    save_tensors(run / CHECKPOINT, {**tensors, "sums": at.sums}, about)


def read_training(
    detector: Detector, optimizer: torch.optim.Optimizer, run: Path
) -> tuple[dict[str, Tensor], Position]:
    """Read the tensors of `checkpoint.safetensors` and the position of training.

    Raises:
        CheckpointError: If the file is damaged or of a detector of another structure.
    """
    path = run / CHECKPOINT
    expected = {f"model.{n}": x for n, x in detector.state_dict().items() if not n.startswith("features.")}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        expected[f"optimizer.{index}.step"] = torch.zeros(())
        expected[f"optimizer.{index}.exp_avg"] = expected[f"optimizer.{index}.exp_avg_sq"] = parameter
    expected["sums"] = Position().sums
    flexible = {f"model.{name}": most for name, most in detector.flexible.items()}
    tensors, about = _checked_tensors(path, expected, ("optimizer.", *(f"model.{name}" for name in NEWER)), flexible)
    try:
        counts = {name: type(value)(about["at"][name]) for name, value in Position().counts().items()}
        at = Position(sums=tensors.pop("sums"), **counts)
        numbers = [value for value in counts.values() if not isinstance(value, str)]
        # Adam has all of a parameter's state or none of it.
        states = {name.rsplit(".", 1)[0] for name in tensors if name.startswith("optimizer.")}
        complete = all(f"{state}.{k}" in tensors for state in states for k in ("step", "exp_avg", "exp_avg_sq"))
        if not (complete and all(0 <= x < math.inf for x in numbers)):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} must hold a complete training state, but got others; start a new run") from error
    return tensors, at


def restore_training(detector: Detector, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of a checkpoint into detector and optimizer."""
    model = {n.removeprefix("model."): x for n, x in tensors.items() if n.startswith("model.")}
    detector.load_state_dict(model, strict=False)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            # Fused Adam assumes that moments have the memory layout of their parameter.
            moment = torch.empty_like(parameters[int(index)]).copy_(x) if x.dim() else x
            state.setdefault(int(index), {})[key] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checked_tensors(
    path: Path, expected: Mapping[str, Tensor], optional: tuple[str, ...], flexible: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata; check format, digest, and that weights, statistics and constants are finite."""
    tensors, about = load_tensors(path, expected, optional, flexible)
    _check_format(about.get("format"), path)
    for name, x in tensors.items():
        if x.is_floating_point() and not name.startswith("calibration.") and not _is_finite(x):
            raise CheckpointError(f"{path} must hold finite numbers, but got inf or NaN in {name}; fit the model again")
    check_digest(path, tensors, about)
    return tensors, about


def _is_finite(x: Tensor) -> bool:
    """Return whether all numbers are finite: if the extremes are, which takes a quarter of the time of `isfinite`."""
    return x.numel() == 0 or all(math.isfinite(extreme.item()) for extreme in x.aminmax())


def _check_format(found: object, path: Path) -> None:
    if str(found) != str(FORMAT):
        raise CheckpointError(
            f"{path} must have format {FORMAT}, but got {str(found)[:40]}; use the version of semflow that made it"
        )
