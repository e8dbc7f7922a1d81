"""A command and all that it starts: none outlives whoever holds this process's standard input, however that ends.

python keeping.py COMMAND ...    ends with the command's exit code, or kills everything when its input ends
"""

__all__ = ["Kept"]

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


class Kept:
    """A command under a keeper; what it says goes into a file.

    Args:
        words: of the command.
        said: the file.
        environment: of the command.
    """

    def __init__(self, words: Sequence[str], said: Path, environment: Mapping[str, str]) -> None:
        self.file = said
        with said.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *words],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def said(self) -> str:
        return self.file.read_text(errors="replace")

    def until(self, text: str, seconds: float = 120) -> None:
        """Wait until it has said something."""
        limit = time.monotonic() + seconds
        while text not in self.said():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{text!r} was not said: {self.said()}")
            time.sleep(0.02)

    def wait(self, seconds: float = 300) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL for everything, the command and all that it has started; nothing is left when this returns."""
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.wait(60)


def descendants(root: int) -> list[int]:
    """The processes below one, those that are dead and not waited for left out."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        parents[int(entry.name)] = (int(parent), state)
    found, look = [], [root]
    while look:
        below = [pid for pid, (parent, _) in parents.items() if parent in look]
        found += [pid for pid in below if parents[pid][1] not in "ZX"]
        look = below
    return found


def kill_all() -> None:
    """Whoever loses its parent becomes a child of this process, so that none is out of reach."""
    while pids := descendants(os.getpid()):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def main(words: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who reads, and its end is this one's
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL)

    def watch() -> None:
        os.read(0, 1)
        kill_all()

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    kill_all()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
