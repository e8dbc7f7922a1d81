"""Failures of the processes that load images: each reaches the parent, and soon."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import Dataset

from semflow.data import Sample
from semflow.errors import DataError, ProcessError
from semflow.training import workers
from semflow.training.loading import batches
from semflow.training.workers import loader


class TwoArgumentsError(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def local_class() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("of a function")


def raises(error: BaseException) -> None:
    raise error


FAILURES = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), ProcessError, "stay alive"),
    "bus error": (lambda: os.kill(os.getpid(), signal.SIGBUS), ProcessError, "stay alive"),
    "exit": (lambda: os._exit(0), ProcessError, "stay alive"),
    "exit with a code": (lambda: os._exit(3), ProcessError, "stay alive"),
    "SystemExit": (lambda: raises(SystemExit(3)), ProcessError, "stay alive"),
    "hang": (lambda: time.sleep(1000), ProcessError, "no batch in 1 s"),
    "DataError": (lambda: raises(DataError("a.png must be intact, but got text")), DataError, "a.png must be intact"),
    "ValueError": (lambda: raises(ValueError("bad")), ValueError, "bad"),
    "MemoryError": (lambda: raises(MemoryError("all")), MemoryError, "all"),
    "an error of a local class": (local_class, ProcessError, "LocalError: of a function"),
    "an error that cannot be unpickled": (lambda: raises(TwoArgumentsError(1, 2)), ProcessError, "1 and 2"),
}


class Images(Dataset[Sample]):
    """Images, of which one fails."""

    def __init__(self, failure: str | None = None, size: int = 8) -> None:
        self.failure, self.size = failure, size

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        if index == 5 and self.failure is not None:
            FAILURES[self.failure][0]()
        mask = torch.eye(self.size, dtype=torch.bool)
        return Sample(torch.full((3, self.size, self.size), index / 10), index % 2, mask, f"{index}.png")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("failure", FAILURES)
def test_failure_of_a_worker_reaches_the_parent(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 1.0 if failure == "hang" else 60.0)
    monkeypatch.setattr(workers, "EVERY", 1.0)
    _, kind, words = FAILURES[failure]
    seen = []
    with pytest.raises(kind, match=words) as caught:
        seen += [batch.paths for batch in batches(Images(failure), 2, 2)]
    assert "\n" not in str(caught.value)


def test_batch_that_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(ProcessError, match=r"must be able to send images, but got .*lambda"):
        list(loader(Images(), lambda samples: [lambda: samples], 2, batch_size=2))


def test_workers_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.multiprocessing, "Queue", full)
    with pytest.raises(ProcessError, match="must be able to start, but got No space left on device; use fewer workers"):
        list(batches(Images(), 2, 2))


@pytest.mark.parametrize("count", [1, 2])
def test_batches_of_workers_are_those_of_this_process(count: int) -> None:
    own, others = list(batches(Images(), 3)), list(batches(Images(), 3, count))
    for a, b in zip(own, others, strict=True):
        assert type(a) is type(b)
        assert a.paths == b.paths
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.anomaly_masks, b.anomaly_masks)
    others[0].images.add_(1)  # writable


SMALL_MEMORY = """
mount -t tmpfs -o size=1m shm /dev/shm
"$PYTHON" - <<'END'
import test_workers
print(sum(len(batch.paths) for batch in test_workers.batches(test_workers.Images(size=512), 4, 2)))
END
"""


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="may not mount",
)
def test_batches_larger_than_the_shared_memory_arrive() -> None:
    """12 MB each, through 1 MB: containers have 64 MB by default, less than a few batches of large images."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])  # noqa: PTH120
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": path}
    command = ["unshare", "-m", "bash", "-ec", SMALL_MEMORY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "8"), done.stderr
