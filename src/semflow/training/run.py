"""The run directory during training: created, resumed, and written by one process."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError
from semflow.files import remove_partial, replace_file, writing
from semflow.files.tensors import read_about

from . import checkpoint
from .checkpoint import CHECKPOINT, CONFIG, LOG, MODEL, SUMMARY, Position
from .distributed import Processes


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
        self._saved, self._last = time.monotonic(), ""

    def open(self, resume: bool) -> Position | None:
        """Create or resume the run; return the position of training, or None if a finished model has been loaded."""
        if self.folder is None:
            if resume:
                raise ConfigError("output must be a run directory to resume, but got None")
            return self._send(None, Position())
        folder = self.folder
        return self._send(*self.processes.first(lambda: self._open(folder, resume)))

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

    def due(self) -> bool:
        """Return True if it is time for a checkpoint and this process writes it."""
        writes = self.folder is not None and self.processes.rank == 0
        return writes and time.monotonic() - self._saved >= self.seconds

    def save(self, at: Position) -> None:
        """Write a checkpoint; the previous one stays valid until this one is complete."""
        if self.folder is not None:
            with writing(self.folder / CHECKPOINT, self._advice(), CheckpointError):
                checkpoint.save_training(self.detector, self.optimizer, at, self.folder)
            self._saved, self._last = time.monotonic(), str(at)

    def finish(self, fingerprint: str) -> None:
        """Write the trained model with the fingerprint of its images, and remove the checkpoint."""
        if self.folder is not None:
            with writing(self.folder / MODEL, self._advice(), CheckpointError):
                checkpoint.write_summary(self.detector, self.folder)
                checkpoint.save_model(self.detector, self.folder, {**self.config, "fingerprint": fingerprint})
            (self.folder / CHECKPOINT).unlink(missing_ok=True)

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
                remove_partial(folder, CONFIG, LOG, CHECKPOINT, MODEL, SUMMARY)
            if not (folder / CONFIG).exists():
                if not folder.is_dir() or any(folder.iterdir()):
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
        if (folder / MODEL).exists():
            checkpoint.load_into(self.detector, folder)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            alone = self.processes.count == 1
            return (None if alone else {name: x.cpu() for name, x in self.detector.state_dict().items()}), None
        if not (folder / CHECKPOINT).exists():
            (folder / LOG).unlink(missing_ok=True)
            return None, Position()
        tensors, at = checkpoint.read_training(self.detector, self.optimizer, folder)
        epochs, batch = (self.config["training"][name] for name in ("epochs", "batch_size"))
        images = self.config["images"] - self.config.get("held_for_choice", 0)
        if (at.epoch, at.step) > (epochs, 0) or at.step >= -(-images // batch):
            raise CheckpointError(
                f"{folder / CHECKPOINT} must be within {epochs} epochs of training, but got {at}; start a new run"
            )
        self._last = str(at)
        log = (folder / LOG).read_text(encoding="utf-8", errors="replace") if (folder / LOG).exists() else ""
        lines = "".join(log.splitlines(keepends=True)[: at.epoch])  # without epochs that are repeated, and half a line
        replace_file(folder / LOG, lambda path: path.write_text(lines, encoding="utf-8"))
        return tensors, at

    def _check_settings(self, folder: Path) -> None:
        """Raise CheckpointError if the run was started with other settings."""
        before = {k: v for k, v in checkpoint.read_config(folder).items() if k not in ("format", "version", "versions")}
        for key in before.keys() | self.config.keys():
            was, now = _given(before.get(key)), _given(self.config.get(key))
            if was != now and isinstance(was, dict) and isinstance(now, dict):
                key, was, now = next(
                    (f"{key}.{k}", was.get(k), now.get(k)) for k in was.keys() | now.keys() if was.get(k) != now.get(k)
                )
            if was != now:
                raise CheckpointError(f"{folder} must be resumed with {key} = {was}, but got {now}")


def _given(value: Any) -> Any:
    """Leave out settings that are None, which a version without them has not written."""
    if not isinstance(value, dict):
        return value
    return {name: _given(x) for name, x in value.items() if x is not None and x != "none"}
