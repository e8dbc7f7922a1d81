"""Runs the parts one after the other, each in a process of its own with a limit of time; needs no torch.

A part that fails, hangs or crashes ends alone. Its file keeps what it had measured.
"""

import collections
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parts import PARTS, missing
from .record import read, write_atomic
from .report import report

ROOT = Path(__file__).resolve().parents[2]
MARGIN = 0.12  # of a part's time, in which it starts and ends


class Options:
    """Parts to run, output folder and time limit of a run."""

    def __init__(self, minutes: float, output: Path, data: Path | None, again: bool, rehearse: bool) -> None:
        self.minutes, self.output, self.data = minutes, output, data
        self.again, self.rehearse = again, rehearse


def run(options: Options, parts: Sequence[str], command: Sequence[str]) -> bool:
    """Run parts that are not done yet, and write the report after each; return whether all are done."""
    end = time.monotonic() + 60 * options.minutes
    waiting = [name for name in parts if options.again or not _is_done(options, name)]
    for name in parts:
        if name not in waiting:
            print(f"{name}: done before, see {options.output / name}.json; --again measures it again", flush=True)
    while waiting:
        name = waiting[0]
        whole = sum(PARTS[part].share for part in waiting)
        seconds = max(0.0, end - time.monotonic()) * PARTS[name].share / whole
        print(f"\n{name}: {PARTS[name].title}, at most {seconds:.0f} s", flush=True)
        try:
            _run_part(options, name, seconds, command)
        finally:
            write_atomic(options.output / "report.md", report(options.output))
        waiting.pop(0)
    return all(read(options.output / f"{name}.json").get("status") == "done" for name in parts)


def _is_done(options: Options, name: str) -> bool:
    found = read(options.output / f"{name}.json")
    return found.get("status") == "done" and found.get("rehearsal") == options.rehearse


def _run_part(options: Options, name: str, seconds: float, command: Sequence[str]) -> None:
    path = options.output / f"{name}.json"
    head: dict[str, Any] = {"part": name, "command": shlex.join(command), "python": platform.python_version()}
    head["rehearsal"] = options.rehearse
    without = missing(PARTS[name].needs)
    if without:
        reason = f"{', '.join(without)} not installed; --wheels must name a folder that `benchmarks/gpu.sh --pack` made"
        print(f"  skipped: {reason}", flush=True)
        write_atomic(path, json.dumps({"status": "skipped", **head, "reason": reason}, indent=2) + "\n")
        return
    path.unlink(missing_ok=True)
    words = [sys.executable, "-m", "benchmarks.gpu.part", name, "--output", str(options.output)]
    words += ["--seconds", f"{seconds * (1 - MARGIN):.1f}", "--command", head["command"]]
    words += ["--data", str(options.data)] if options.data else []
    words += ["--rehearse"] if options.rehearse else []
    status, tail = _watched(words, seconds)
    found = read(path) or head
    if status == 0 and found.get("status") in ("done", "incomplete"):
        return
    reason = f"it took longer than {seconds:.0f} s" if status is None else f"the process ended with {status}"
    found |= {"status": "timed out" if status is None else "failed", "log": tail}
    found.setdefault("reason", reason)
    print(f"  {found['status']}: {found['reason']}", flush=True)
    write_atomic(path, json.dumps(found, indent=2) + "\n")


def _watched(words: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a process and show its output; return its exit status, None after the limit, and the end of the output."""
    process = subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    tail: collections.deque[str] = collections.deque(maxlen=60)

    def follow() -> None:
        for line in process.stdout or ():
            tail.append(line)
            print(line, end="", flush=True)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        status: int | None = process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        status = None
    finally:
        _end(process)
        reader.join(timeout=5)
    return status, "".join(tail)[-6000:]


def _end(process: subprocess.Popen[str]) -> None:
    """End a process that still runs, and what it has started; a process that waits for the device may hang."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # none of the group is left
            return
        if process.poll() is None:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                continue
