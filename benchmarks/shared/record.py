"""What a reader needs to believe a figure, or to get it again: command, versions, commit and machine."""

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["commit", "processor", "provenance", "versions"]

ROOT = Path(__file__).resolve().parents[2]


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(*more: str) -> dict[str, str]:
    """Versions of the interpreter, of semflow and of what its figures depend on; none of them is imported for it."""
    import semflow

    found = {"semflow": semflow.__version__, "python": platform.python_version()}
    for name in ("torch", "timm", "numpy", *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """The commit of the working tree, with `+` when files of the package or of the benchmarks differ from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "src", "benchmarks/*.py")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name + ("+" if changed else "")


def provenance(command: Sequence[str], device: str = "cpu") -> dict[str, Any]:
    """Command, versions, commit and machine, for a result file."""
    machine = f"{processor()}, {os.cpu_count()} cores"
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            machine += f", {torch.cuda.get_device_name(device if device != 'auto' else None)}"
    return {"command": shlex.join(command), "commit": commit(), "versions": versions(), "machine": machine}


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
