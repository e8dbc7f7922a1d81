"""The run directory while its detector is trained: opened, gone on with, and kept whole by one process."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from semflow._version import __version__
from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError
from semflow.files import remove_partial, replace_file, writing
from semflow.synthesis import CutPaste

from .checkpoint import (
    CHECKPOINT,
    CONFIG,
    LOG,
    MODEL,
    Position,
    load_into,
    origin,
    read_config,
    read_model_about,
    read_training,
    restore_training,
    save_model,
    save_training,
    versions,
    write_config,
)
from .config import TrainingConfig
from .distributed import ALONE, Processes

__all__ = ["Run"]


class Run:
    """A run directory, or none. Process 0 reads and writes it, and tells the others what it has read.

    Args:
        folder: None keeps nothing.
        detector, optimizer, training: what is trained, and how.
        images: how many there are.
        seconds: between two checkpoints.
        processes: that train together.
    """

    def __init__(
        self,
        folder: Path | None,
        detector: Detector,
        optimizer: torch.optim.Optimizer,
        training: TrainingConfig,
        synthesis: CutPaste | None,
        images: int,
        seconds: float = 60.0,
        processes: Processes = ALONE,
    ) -> None:
        self.folder, self.detector, self.optimizer = folder, detector, optimizer
        self.seconds, self.processes = seconds, processes
        synthesized = None if synthesis is None else asdict(synthesis)
        settings = {"training": asdict(training), "synthesis": synthesized, "images": images}
        config = {"version": __version__, **origin(detector), **settings}
        self.config: dict[str, Any] = json.loads(json.dumps(config))  # as it comes back: tuples become lists
        self._saved, self._last = time.monotonic(), ""

    def open(self, resume: bool) -> Position | None:
        """Make the directory, or go on with it: where training stands, or None if it has ended and the model is loaded.

        Raises:
            ConfigError: to resume, a directory is needed.
            CheckpointError: it holds something else, or a run of other options, or cannot be written.
        """
        if self.folder is None:
            if resume:
                raise ConfigError("resume needs output, the run directory to go on with, but got None")
            kept: tuple[Any, Position | None] = (None, Position())
        else:
            kept = self.processes.first(lambda: self._open(resume))
        tensors, at = kept
        if at is None:  # its buffers may have other lengths, as those of a calibration
            if self.processes.rank:
                self.detector.load_state_dict(tensors, strict=False)
            return None
        if tensors is not None:
            restore_training(self.detector, self.optimizer, tensors)
        self.processes.spread(self.detector.state_dict().values())
        return at

    def fingerprint(self) -> str:
        """Of the images that the finished model was trained on; "" where it does not say."""
        found = self.processes.first(lambda: read_model_about(self.folder or "").get("fingerprint"))
        return found if isinstance(found, str) else ""

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        if self.folder is not None and self.processes.rank == 0:
            with (
                writing(self.folder / LOG, self._advice(), CheckpointError),
                (self.folder / LOG).open("a", encoding="utf-8") as log,
            ):
                log.write(json.dumps(record) + "\n")

    def due(self) -> bool:
        """Whether it is time for a checkpoint, and this process writes it."""
        mine = self.folder is not None and self.processes.rank == 0
        return mine and time.monotonic() - self._saved >= self.seconds

    def save(self, at: Position) -> None:
        """Write a checkpoint; the one before is good until this one is."""
        if self.folder is not None:
            with writing(self.folder / CHECKPOINT, self._advice(), CheckpointError):
                save_training(self.detector, self.optimizer, at, self.folder)
            self._saved, self._last = time.monotonic(), _told(at)

    def finish(self, fingerprint: str) -> None:
        """Write the trained model, with what tells its training images; the checkpoint has done its work."""
        if self.folder is not None:
            about = {k: v for k, v in self.config.items() if k != "version"}
            with writing(self.folder / MODEL, self._advice(), CheckpointError):
                save_model(self.detector, self.folder, {**about, "fingerprint": fingerprint})
            (self.folder / CHECKPOINT).unlink(missing_ok=True)

    def kept(self) -> str:
        """What there is to go on with, as the end of a message."""
        return f"; {self.folder} keeps the checkpoint of {self._last}" if self._last else ""

    def _advice(self) -> str:
        return f"continue with resume{self.kept()}"

    def _open(self, resume: bool) -> tuple[Any, Position | None]:
        folder = self.folder
        if folder is None:
            raise ConfigError("resume needs output, the run directory to go on with, but got None")
        with writing(folder, "choose another directory", CheckpointError):
            if not folder.exists() or folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                remove_partial(folder, CONFIG, LOG, CHECKPOINT, MODEL)
            if not (folder / CONFIG).exists():
                if not folder.is_dir() or any(folder.iterdir()):
                    raise CheckpointError(
                        f"{folder}: expected an empty or new directory for the run, but there are other files in it"
                    )
                write_config(folder, {**self.config, "versions": versions()})
                return None, Position()
            if not resume:
                raise CheckpointError(
                    f"{folder}: holds a run already; go on with it by resume, or choose another directory"
                )
            self._check_same(folder)
            return self._reopen(folder)

    def _reopen(self, folder: Path) -> tuple[Any, Position | None]:
        if (folder / MODEL).exists():
            load_into(self.detector, folder)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            alone = self.processes.count == 1
            return (None if alone else {name: x.cpu() for name, x in self.detector.state_dict().items()}), None
        if not (folder / CHECKPOINT).exists():
            (folder / LOG).unlink(missing_ok=True)
            return None, Position()
        tensors, at = read_training(self.detector, self.optimizer, folder)
        epochs, batch = (self.config["training"][name] for name in ("epochs", "batch_size"))
        if (at.epoch, at.step) > (epochs, 0) or at.step >= -(-self.config["images"] // batch):
            raise CheckpointError(
                f"{folder / CHECKPOINT}: broken, expected training to stand within {epochs} epochs, but it stands at "
                f"{_told(at)}; start the run anew"
            )
        self._last = _told(at)
        log = (folder / LOG).read_text(encoding="utf-8", errors="replace") if (folder / LOG).exists() else ""
        # Lines of epochs that will be done again, and half a line.
        lines = "".join(log.splitlines(keepends=True)[: at.epoch])
        replace_file(folder / LOG, lambda path: path.write_text(lines, encoding="utf-8"))
        return tensors, at

    def _check_same(self, folder: Path) -> None:
        """Refuse to resume a run that was started with other options."""
        before = {k: v for k, v in read_config(folder).items() if k not in ("format", "version", "versions")}
        for key in before.keys() | (self.config.keys() - {"version"}):
            was, now = before.get(key), self.config.get(key)
            if was != now and isinstance(was, dict) and isinstance(now, dict):
                key, was, now = next(
                    (f"{key}.{k}", was.get(k), now.get(k)) for k in was.keys() | now.keys() if was.get(k) != now.get(k)
                )
            if was != now:
                raise CheckpointError(f"{folder}: cannot resume, it was started with {key} = {was}, but now got {now}")


def _told(at: Position) -> str:
    return f"epoch {at.epoch}" if at.step == 0 else f"step {at.step} of epoch {at.epoch + 1}"
