"""Training that is killed and resumed, and errors of the disk."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from helpers import killed_training as killing
from semflow.detectors import Detector
from semflow.errors import CheckpointError
from semflow.files import tensors as files
from semflow.recipes import Backbone, ConvCouplings, fastflow
from semflow.training import fit
from semflow.training.run import Run


def kill(times: int, seed: int, folder: Path) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, killing.__file__, str(times), str(seed), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_training_killed_four_times_ends_in_the_same_bytes(tmp_path) -> None:
    found = kill(4, 3, tmp_path)
    assert found["kills"] >= 4
    assert len(found["places"]) >= 2


@pytest.mark.slow
def test_training_killed_fifty_times_ends_in_the_same_bytes(tmp_path, record_property) -> None:
    found = kill(50, 0, tmp_path)
    for place, kills in found["places"].items():
        record_property(place, kills)
    record_property("runs", found["runs"])
    assert found["kills"] >= 50
    assert set(found["places"]) == {*killing.PLACES, "at a random time"}


def test_resume_restores_the_memory_layout_of_optimizer_states(images, tmp_path, monkeypatch) -> None:
    """Fused Adam assumes that states have the memory layout of their parameter, which files do not store."""

    def made() -> Detector:
        torch.manual_seed(0)
        detector = fastflow(Backbone("test_efficientnet", "random", (8,)), 32, couplings=ConvCouplings(2))
        detector.flows.to(memory_format=torch.channels_last)
        return detector

    whole = fit(made(), images, epochs=2, batch_size=4, output=tmp_path / "whole", progress=False)
    assert any(p.dim() == 4 and not p.is_contiguous() for p in whole.flows.parameters())
    save = Run.save
    monkeypatch.setattr(Run, "save", lambda self, at: (save(self, at), interrupt(at.epoch == 1)))
    with pytest.raises(KeyboardInterrupt):
        fit(made(), images, epochs=2, batch_size=4, output=tmp_path / "run", checkpoint_seconds=0, progress=False)
    monkeypatch.setattr(Run, "save", save)
    resumed = fit(made(), images, epochs=2, batch_size=4, output=tmp_path / "run", resume=True, progress=False)
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in whole.state_dict().items())


def interrupt(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


def test_resume_continues_within_an_epoch(build, images, tmp_path, monkeypatch) -> None:
    """Batches before the interruption are not repeated."""
    whole = fit(build(), images, epochs=2, output=tmp_path / "whole", progress=False).state_dict()
    save, saved = Run.save, []

    def stop(self, at):
        save(self, at)
        saved.append((at.epoch, at.step))
        if saved[-1] == (1, 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", stop)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(build(), images, epochs=2, output=run, checkpoint_seconds=0, progress=False)
    assert saved == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    monkeypatch.setattr(Run, "save", save)
    steps = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a: (steps.append(1), step(self, *a))[1])
    resumed = fit(build(), images, epochs=2, output=run, resume=True, progress=False).state_dict()
    assert len(steps) == 1
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [[json.loads(x) for x in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "run")]
    for line in (*logs[0], *logs[1]):
        del line["seconds"]
    assert logs[0] == logs[1]


def test_resume_rejects_other_images(build, images, tmp_path, monkeypatch) -> None:
    run, save = tmp_path / "run", Run.save

    def stop(self, at):
        save(self, at)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(build(), images, output=run, checkpoint_seconds=0, progress=False)
    monkeypatch.undo()
    changed = [images[0]._replace(image=images[0].image.flip(-1)), *images[1:]]
    with pytest.raises(CheckpointError, match=r"must be resumed with images of fingerprint \w{12}, but got \w{12}"):
        fit(build(), changed, output=run, resume=True, progress=False)


def resumable(build, images, run: Path) -> dict:
    """Return the state of the uninterrupted run; leave a run with a checkpoint after its first batch."""
    save = Run.save

    def stop(self, at):
        save(self, at)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(build(), images, epochs=2, output=run, checkpoint_seconds=0, progress=False)
    return fit(build(), images, epochs=2, progress=False).state_dict()


@pytest.mark.parametrize("limit", [100, 30_000])
def test_file_size_limit_keeps_the_last_checkpoint(build, images, tmp_path, limit) -> None:
    """The system refuses to write at the first byte or in the middle of a file."""
    run = tmp_path / "run"
    whole = resumable(build, images, run)
    before = (run / "checkpoint.safetensors").read_bytes()
    assert len(before) > 30_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match=r"must be writable, but got .*; .*continue with") as caught:
            fit(build(), images, epochs=2, output=run, resume=True, checkpoint_seconds=0, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert {p.name for p in run.iterdir()} <= {"checkpoint.safetensors", "config.json", "log.jsonl", "summary.json"}
    resumed = fit(build(), images, epochs=2, output=run, resume=True, progress=False).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


FULL = {
    "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "a full disk, as an error of safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
    "a read-only disk": OSError(errno.EROFS, os.strerror(errno.EROFS)),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ("checkpoint.safetensors", "log.jsonl", "model.safetensors")
        for kind in FULL
        if name != "log.jsonl" or "safetensors" not in kind
    ],
)
def test_write_errors_name_the_file(build, images, tmp_path, monkeypatch, kind, name) -> None:
    run = tmp_path / "run"
    whole = resumable(build, images, run)
    before = (run / "checkpoint.safetensors").read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise FULL[kind]

    with monkeypatch.context() as patch:
        if name == "log.jsonl":
            open_ = Path.open
            patch.setattr(Path, "open", lambda path, *a, **k: (refuse if a == ("a",) else open_)(path, *a, **k))
        else:
            write = files.replace_file

            def writing(path: Path, *rest: object, **options: object) -> None:
                (refuse if path.name == name else write)(path, *rest, **options)

            patch.setattr(files, "replace_file", writing)
        seconds = 0 if name == "checkpoint.safetensors" else 1e9
        words = rf"{name} must be writable, but got .*(space|Read-only).* keeps the checkpoint"
        with pytest.raises(CheckpointError, match=words):
            fit(build(), images, epochs=2, output=run, resume=True, checkpoint_seconds=seconds, progress=False)
    assert (run / "checkpoint.safetensors").read_bytes() == before
    resumed = fit(build(), images, epochs=2, output=run, resume=True, progress=False).state_dict()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_resume_removes_partial_files(build, images, tmp_path) -> None:
    """Covers a kill while the first file was written, too."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.x1y2z3w4.partial").write_text("{")
    fit(build(), images, epochs=1, output=run, progress=False)
    (run / ".model.safetensors.01234567.partial").write_bytes(b"half")
    (run / "checkpoint.safetensors").write_bytes(b"killed between the model's move and this file's end")
    fit(build(), images, epochs=1, output=run, resume=True, progress=False)
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "log.jsonl", "model.safetensors", "summary.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".hidden").write_text("the user's own")
    with pytest.raises(CheckpointError, match="other files"):
        fit(build(), images, output=tmp_path / "other", progress=False)
