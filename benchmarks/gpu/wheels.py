"""Packages that travel as wheels: downloaded on a machine with network, installed where they are missing."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .parts import WHEELS, missing

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("FrEIA",)
"""Packages without wheels, which are built here; they hold no compiled code."""
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 26, 24, 17)] + ["manylinux2014_x86_64"]


def pack(folder: Path, pythons: Sequence[str] = PYTHONS) -> None:
    """Download the wheels of `WHEELS` for versions of Python on x86-64 Linux."""
    folder.mkdir(parents=True, exist_ok=True)
    pinned = ["-q", "--no-deps", "-c", str(ROOT / "constraints.txt")]
    _pip(["wheel", "-w", str(folder), *pinned, *SOURCES])
    names = sorted(set(WHEELS.values()) - set(SOURCES))
    for python in pythons:
        words = ["download", "-d", str(folder), *pinned, "--only-binary=:all:"]
        words += ["--implementation", "cp", "--python-version", python]
        _pip([*words, *(word for platform in PLATFORMS for word in ("--platform", platform)), *names])
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"{len(list(folder.glob('*.whl')))} wheels, {size / 2**20:.0f} MiB, in {folder}")


def install(folder: Path, target: Path) -> list[str]:
    """Install what is missing of `WHEELS` into `target`; return what is still missing, with the reason."""
    wanted = sorted(WHEELS[name] for name in missing(tuple(WHEELS)))
    words = ["install", "-q", "--no-index", "--no-deps", "--no-compile", "--find-links", str(folder)]
    words += ["--target", str(target), "--upgrade"]
    problems = []
    if wanted and not _tried([*words, *wanted]):
        for name in wanted:  # one at a time, so that one that cannot be installed does not stop the others
            reason = _pip([*words, name], quiet=True)
            if reason:
                problems.append(f"{name}: {reason}")
    return problems


def _tried(words: Sequence[str]) -> bool:
    return not _pip(words, quiet=True)


def _pip(words: Sequence[str], quiet: bool = False) -> str:
    """Call pip; return the last line of its error if it fails and `quiet` is set, otherwise end with it."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words], capture_output=True, text=True
    )
    if not done.returncode:
        return ""
    reason = (done.stderr.strip() or done.stdout.strip() or f"pip ended with {done.returncode}").splitlines()[-1]
    if not quiet:
        sys.exit(f"pip {' '.join(words)}\n{done.stderr}")
    return reason
