"""`semflow predict --watch` in a process of its own, for the fork server of the tests: everything is imported once."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semflow.app.cli import main
from semflow.app.cli import watch as _watch  # noqa: F401 - imported before the fork
from semflow.data import arriving
from semflow.features.timm_module import load_timm

load_timm()
LONGEST = 120.0


def run(words: list[str], stdout: Path | None, stderr: Path, polling: bool) -> None:
    if polling:
        os.environ["WATCHFILES_FORCE_POLLING"] = "1"
    for path, stream in ((stdout, 1), (stderr, 2)):
        if path is not None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    if stdout is None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        sys.stdout = os.fdopen(1, "w")
    arriving.PATIENCE = 0.5
    raise SystemExit(main(words))


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.01)


class Watching:
    """A running command, its log and its output."""

    def __init__(self, process: Any, output: Path, stdout: Path, stderr: Path) -> None:
        self.process, self.log, self._stdout, self._stderr = process, output / "scores.jsonl", stdout, stderr

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def images(self) -> list[str]:
        return [line["image"] for line in self.lines()]

    def expect(self, *names: str) -> None:
        """Wait until these images have lines, with those that have been printed."""
        wait(lambda: set(names) <= set(self.images()) or not self.process.is_alive())
        assert set(names) <= set(self.images()), self.errors()

    def printed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stdout.read_text().splitlines()]

    def errors(self) -> str:
        return self._stderr.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.is_alive():
            os.kill(self.process.pid, number)
        self.process.join(LONGEST)
        return int(self.process.exitcode)


@contextmanager
def watching(words: list[str], output: Path, *, polling: bool = False, reader: bool = True) -> Iterator[Watching]:
    """Start the command, and wait until it watches."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.watching"])
    stdout, stderr = (output.with_name(f"{output.name}.{name}") for name in ("out", "err"))
    for path in (stdout, stderr):
        path.write_bytes(b"")
    process = context.Process(target=run, args=(words, stdout if reader else None, stderr, polling))
    process.start()
    command = Watching(process, output, stdout, stderr)
    try:
        wait(lambda: "watching" in command.errors() or not process.is_alive())
        yield command
    finally:
        if process.is_alive():
            process.kill()
        process.join()
