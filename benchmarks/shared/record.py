"""Provenance of a result (command, versions, commit, machine, memory) and writing of result files."""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, semflow and the packages that its figures depend on, without importing them."""
    import semflow

    found = {"semflow": semflow.__version__, "python": platform.python_version()}
    for name in ("torch", "timm", "numpy", *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """Return the commit of the working tree, followed by `+` if files of src or benchmarks differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(
            git("status", "--porcelain", "--", "src", "benchmarks/*.py")
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def provenance(command: Sequence[str], device: str = "cpu", packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return command, commit, versions and machine for a result file."""
    machine = f"{processor()}, {os.cpu_count()} cores"
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            machine += f", {torch.cuda.get_device_name(device if device != 'auto' else None)}"
    return {"command": shlex.join(command), "commit": commit(), "versions": versions(*packages), "machine": machine}


def peak_memory() -> int:
    """Return the peak memory of this process in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def write(path: Path, content: str | bytes) -> Path:
    """Write a file completely or not at all, and create its folder."""
    from semflow.files import write_atomic

    return write_atomic(path, content)


def write_json(path: Path, content: Any) -> Path:
    """Write JSON completely or not at all."""
    return write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
