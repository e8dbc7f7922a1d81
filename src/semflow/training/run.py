"""The run directory during training: created, resumed, and written by one process."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch

from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError
from semflow.files import remove_partial, replace_file, writing
from semflow.files.places import occupants
from semflow.files.tensors import read_about

from . import checkpoint
from .callbacks import RunStart
from .checkpoint import CHECKPOINT, CONFIG, FOLDS, LOG, MODEL, SUMMARY, Position
from .distributed import Processes

BACKBONE = "backbone_digest"
"""Setting with the digest of the backbone's weights."""
MORE_EPOCHS = ("training.epochs", "arguments.training.epochs", "arguments.training.steps")
"""Settings that may differ if a run is trained for more epochs."""
NEWER = {"training.accumulate": 1, "training.precision": "float32", "couplings.kind": "affine"}
"""Settings that runs of earlier versions lack, with the values that they had."""


class Run:
    """A run directory, or none. Process 0 reads and writes it, and sends the others what it has read.

    Resuming needs equal `settings`; there are `seconds` between checkpoints.
    """

    def __init__(
        self,
        folder: Path | None,
        detector: Detector,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        seconds: float,
        processes: Processes,
    ) -> None:
        self.folder, self.detector, self.optimizer = folder, detector, optimizer
        self.seconds, self.processes = seconds, processes
        self.config: dict[str, Any] = {**checkpoint.origin(detector), **json.loads(json.dumps(settings))}
        self._saved, self._last, self._grown = time.monotonic(), "", False

    def open(self, resume: bool) -> Position | None:
        """Create or resume the run; return the position of training, or None if a finished model has been loaded."""
        if self.folder is None:
            if resume:
                raise ConfigError("output must be a run directory to resume, but got None")
            return self._send(None, Position())
        folder = self.folder
        return self._send(*self.processes.first(lambda: self._open(folder, resume)))

    def begin(self) -> None:
        """Record the larger number of epochs of a run that is trained further, once nothing else can refuse it."""
        if self._grown and self.folder is not None and self.processes.rank == 0:
            with writing(self.folder / CONFIG, self._advice(), CheckpointError):
                checkpoint.write_config(self.folder, self.config)

    def rewrite(self) -> None:
        """Write the finished model again, with its calibration."""
        if self.folder is not None:
            with writing(self.folder / MODEL, self._advice(), CheckpointError):
                checkpoint.write_summary(self.detector, self.folder)
                checkpoint.save_model(self.detector, self.folder)
            (self.folder / FOLDS).unlink(missing_ok=True)

    def fingerprint(self) -> str:
        """Return the fingerprint of the images that the finished model was trained on, or "" if it has none."""
        found = self.processes.first(lambda: read_about(cast(Path, self.folder) / MODEL).get("fingerprint"))
        return found if isinstance(found, str) else ""

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to the log."""
        if self.folder is not None and self.processes.rank == 0:
            path = self.folder / LOG
            with writing(path, self._advice(), CheckpointError), path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")

    def start(self) -> RunStart:
        """Return what callbacks learn about the run; the log is read by process 0 only."""
        path = self.folder and self.folder / LOG
        records: list[dict[str, Any]] = []
        if path is not None and self.processes.rank == 0 and path.exists():
            with suppress(ValueError):  # a line that was edited, or half a line, ends what is known
                records.extend(map(json.loads, path.read_text(encoding="utf-8-sig", errors="replace").splitlines()))
        return RunStart(self.folder, _flat(self.config), records, self.processes.rank)

    def due(self) -> bool:
        """Return True if it is time for a checkpoint and this process writes it."""
        writes = self.folder is not None and self.processes.rank == 0
        return writes and time.monotonic() - self._saved >= self.seconds

    def save(self, at: Position) -> None:
        """Write a checkpoint; the previous one stays valid until this one is complete."""
        if self.folder is not None and self.processes.rank == 0:
            with writing(self.folder / CHECKPOINT, self._advice(), CheckpointError):
                checkpoint.save_training(self.detector, self.optimizer, at, self.folder)
            self._saved, self._last = time.monotonic(), str(at)

    def finish(self, fingerprint: str) -> None:
        """Write the trained model with the fingerprint of its images, and remove the checkpoint."""
        if self.folder is not None:
            with writing(self.folder / MODEL, self._advice(), CheckpointError):
                checkpoint.write_summary(self.detector, self.folder)
                checkpoint.save_model(self.detector, self.folder, {**self.config, "fingerprint": fingerprint})
            for name in (CHECKPOINT, FOLDS):
                (self.folder / name).unlink(missing_ok=True)

    def kept(self) -> str:
        """Return the end of an error message that names the last checkpoint, or "" if there is none."""
        return f"; {self.folder} keeps the checkpoint of {self._last}" if self._last else ""

    def _advice(self) -> str:
        return f"continue with resume{self.kept()}"

    def _send(self, tensors: Any, at: Position | None) -> Position | None:
        """Bring what process 0 has read into this process's detector and optimizer."""
        if at is None:  # buffers may have other lengths, such as those of a calibration
            if self.processes.rank:
                self.detector.load_state_dict(tensors, strict=False)
            return None
        if tensors is not None:
            checkpoint.restore_training(self.detector, self.optimizer, tensors)
        self.processes.spread(self.detector.state_dict().values())
        return at

    def _open(self, folder: Path, resume: bool) -> tuple[Any, Position | None]:
        with writing(folder, "choose another directory", CheckpointError):
            if not folder.exists() or folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                remove_partial(folder, CONFIG, LOG, CHECKPOINT, MODEL, SUMMARY, FOLDS)
            if not (folder / CONFIG).exists():
                if not folder.is_dir() or occupants(folder):
                    raise CheckpointError(f"{folder} must be a new or empty directory, but got one with other files")
                checkpoint.write_config(folder, self.config)
                return None, Position()
            if not resume:
                raise CheckpointError(
                    f"{folder} must be a new directory, but got one that holds a run; resume it or choose another"
                )
            self._check_settings(folder)
            return self._reopen(folder)

    def _reopen(self, folder: Path) -> tuple[Any, Position | None]:
        trained = self._trained(folder)
        if trained is not None and not self._grown:
            checkpoint.load_into(self.detector, folder)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            alone = self.processes.count == 1
            return (None if alone else {name: x.cpu() for name, x in self.detector.state_dict().items()}), None
        if trained is None and not (folder / CHECKPOINT).exists():
            (folder / LOG).unlink(missing_ok=True)
            return None, Position()
        tensors, at = self._furthest(folder, trained)
        training = self.config["training"]
        epochs, batch = training["epochs"], training["batch_size"] * training["accumulate"]
        images = self.config["images"]
        if (at.epoch, at.step) > (epochs, 0) or at.step >= -(-images // batch):
            raise CheckpointError(
                f"{folder / CHECKPOINT} must be within {epochs} epochs of training, but got {at}; start a new run"
            )
        self._last = str(at)
        log = (folder / LOG).read_text(encoding="utf-8-sig", errors="replace") if (folder / LOG).exists() else ""
        lines = "".join(log.splitlines(keepends=True)[: at.epoch])  # without epochs that are repeated, and half a line
        replace_file(folder / LOG, lambda path: path.write_text(lines, encoding="utf-8"))
        return tensors, at

    def _trained(self, folder: Path) -> int | None:
        """Return the epochs of the finished model, or None without one; fewer than asked for to train it further."""
        if not (folder / MODEL).exists():
            return None
        recorded, epochs = _recorded_epochs(folder), int(self.config["training"]["epochs"])
        self._grown = recorded is not None and recorded < epochs
        return epochs if recorded is None else recorded

    def _furthest(self, folder: Path, trained: int | None) -> tuple[dict[str, torch.Tensor], Position]:
        """Return tensors and position of the checkpoint, or of the model that is trained further."""
        if (folder / CHECKPOINT).exists():
            tensors, at = checkpoint.read_training(self.detector, self.optimizer, folder)
            if trained is None or (at.epoch, at.step) > (trained, 0):
                return tensors, at
        checkpoint.load_into(self.detector, folder)
        model = {f"model.{n}": x for n, x in self.detector.state_dict().items() if not n.startswith("features.")}
        about = read_about(folder / MODEL)
        return model, Position(cast(int, trained), fingerprint=str(about.get("fingerprint", "")))

    def _check_settings(self, folder: Path) -> None:
        """Raise CheckpointError if the run was started with other settings; a finished one may get more epochs."""
        before, now = _flat(checkpoint.read_config(folder)), _flat(self.config)
        epochs = before.get("training.epochs")
        grown = epochs is not None and epochs == _recorded_epochs(folder) and epochs < now["training.epochs"]
        ignored = {"format", "version", *(MORE_EPOCHS if grown else ())}
        if BACKBONE in before:  # the weights themselves are compared, not where they are
            ignored |= {name for name in before.keys() | now.keys() if name.endswith(".weights")}
        else:
            ignored.add(BACKBONE)
        order = sorted(
            before.keys() | now.keys(),
            # Other tiles change the number of images, too.
            key=lambda name: (name == BACKBONE, name.startswith("arguments."), not name.startswith("tiles."), name),
        )
        for name in order:
            was, given = before.get(name, NEWER.get(name.removeprefix("arguments."))), now.get(name)
            if was != given and name not in ignored and not name.startswith("versions."):
                raise CheckpointError(f"{folder} must be resumed with {name} = {was}, but got {given}")


def _recorded_epochs(folder: Path) -> int | None:
    """Return the epochs of a finished model, or None without a model or without a record."""
    made = read_about(folder / MODEL).get("training") if (folder / MODEL).exists() else None
    found = made.get("epochs") if isinstance(made, dict) else None
    return found if type(found) is int else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted name, without those that are None, which a version without them has not written."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None and value != "none":
            found[prefix + name] = value
    return found


def check_images(folder: Path | None, before: str, now: str) -> None:
    """Raise CheckpointError if a run is resumed with other images."""
    if before and before != now:
        raise CheckpointError(
            f"{folder} must be resumed with images of fingerprint {before[:12]}, but got {now[:12]}; start a new run"
        )
