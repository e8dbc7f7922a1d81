"""Run directories: `config.json`, `log.jsonl`, `checkpoint.safetensors` while training, `model.safetensors` at the end.

Every file is written beside its place and moved there, so that a reader or a killed process never meets half of one.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError
from .detector import Detector

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "FORMAT",
    "LOG",
    "MODEL",
    "load_into",
    "load_training",
    "read_config",
    "save_model",
    "save_training",
    "write_atomic",
    "write_config",
]

FORMAT = 1
CONFIG, LOG, CHECKPOINT, MODEL = "config.json", "log.jsonl", "checkpoint.safetensors", "model.safetensors"


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`."""
    text = json.dumps({"format": FORMAT, **config}, indent=2) + "\n"
    write_atomic(run / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def read_config(run: str | Path) -> dict[str, Any]:
    """The `config.json` of a run directory.

    Raises:
        CheckpointError: it is missing, broken or of another format.
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{run}: not a run directory, expected {CONFIG} in it; make one with semflow fit")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: broken, expected JSON with a format number; fit the model again") from error
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: made by another version of semflow, expected format {FORMAT} but got {found}; "
            "fit the model again or use the version that made it"
        )
    return config


def save_model(detector: Detector, run: str | Path) -> Path:
    """Write `model.safetensors`: all weights, the backbone's included, so that a run needs nothing else."""
    path = Path(run) / MODEL
    tensors = {name: x.detach().cpu().contiguous() for name, x in detector.state_dict().items()}
    write_atomic(path, lambda file: safetensors.torch.save_file(tensors, file, {"format": str(FORMAT)}))
    return path


def load_into(detector: Detector, run: str | Path) -> Detector:
    """Load `model.safetensors` into a detector built alike.

    Raises:
        CheckpointError: the file is missing, broken, or of a detector built otherwise.
    """
    path = Path(run) / MODEL
    if not path.is_file():
        unfinished = (Path(run) / CHECKPOINT).is_file()
        advice = "training has not finished, go on with fit --resume" if unfinished else "make one with semflow fit"
        raise CheckpointError(f"{path}: expected a trained model, but there is none; {advice}")
    _load_state(detector, _read(path), path)
    return detector


def _load_state(detector: Detector, tensors: Mapping[str, Tensor], path: Path, frozen: bool = True) -> None:
    own = {n: x for n, x in detector.state_dict().items() if frozen or not n.startswith("features.")}
    for name in own.keys() | tensors.keys():
        came = tuple(tensors[name].shape) if name in tensors else None
        expected = tuple(own[name].shape) if name in own else None
        if came != expected:
            raise CheckpointError(f"{path}: of another detector, expected {expected} for {name} but got {came}")
    detector.load_state_dict(tensors, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: broken, expected a safetensors file; fit the model again") from error


def save_training(detector: Detector, optimizer: torch.optim.Optimizer, epoch: int, run: Path) -> None:
    """Write `checkpoint.safetensors`: `epoch` epochs are done. The frozen backbone is not in it."""
    tensors = {f"model.{n}": x for n, x in detector.state_dict().items() if not n.startswith("features.")}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": torch.as_tensor(x) for name, x in state.items()})
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    metadata = {"format": str(FORMAT), "epoch": str(epoch)}
    write_atomic(run / CHECKPOINT, lambda file: safetensors.torch.save_file(tensors, file, metadata))


def load_training(detector: Detector, optimizer: torch.optim.Optimizer, run: Path) -> int:
    """Load `checkpoint.safetensors` into detector and optimiser; the number of epochs that are done.

    Raises:
        CheckpointError: the file is broken or of a detector built otherwise.
    """
    path = run / CHECKPOINT
    tensors = _read(path)
    with safetensors.safe_open(path, "pt") as file:
        epoch = int(file.metadata()["epoch"])
    model = {n.removeprefix("model."): x for n, x in tensors.items() if n.startswith("model.")}
    _load_state(detector, model, path, frozen=False)
    state: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = x
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return epoch
