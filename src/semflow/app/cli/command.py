"""Command lines that work as printed: with the path of this program, quoted, and without activating anything."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from semflow.errors import WeightsError


def program() -> list[str]:
    """Return the words that start this program: `semflow` only if a shell finds this very program by that name.

    Example:
        >>> program()[-1] in ("semflow", program()[-1])
        True
    """
    ran = Path(os.path.abspath(sys.argv[0]))  # noqa: PTH100 - resolve would follow links
    if ran.stem != "semflow" or not ran.is_file():  # python -m semflow, or main() called from Python
        return [sys.executable or "python", "-m", "semflow"]
    found = shutil.which("semflow")
    return ["semflow"] if found is not None and ran.samefile(found) else [str(ran)]


def printed(words: Sequence[object]) -> str:
    """Return a command of this program as one line for a shell.

    Example:
        >>> printed(["predict", "--input", "my parts"]).endswith(" predict --input 'my parts'")
        True
    """
    every = [*program(), *map(str, words)]
    return subprocess.list2cmdline(every) if os.name == "nt" else shlex.join(every)


def unused(path: Path) -> Path:
    """Return a path that does not exist yet: this one, or with a number.

    Example:
        >>> unused(Path("no/such/folder"))
        PosixPath('no/such/folder')
    """
    others = (path.with_name(f"{path.name}-{number}") for number in range(2, 10_000))
    return path if not path.exists() else next((other for other in others if not other.exists()), path)


def without_weights(error: WeightsError, words: Sequence[str]) -> str:
    """Return the message for weights that cannot be had, with one complete command that needs no network."""
    from semflow.features.weights_hub import installed_backbone

    if not words or words[0] != "fit":
        return str(error)
    installed = installed_backbone()
    if installed is None or _begun(words):
        if not error.url:
            return str(error)
        again = printed([*_left_out(words, ("--weights",)), "--weights", "model.safetensors"])
        return f"{error.problem}; download {error.url} elsewhere, copy it here as model.safetensors, and run {again}"
    kept = _left_out(words, ("--backbone", "--weights"))
    again = printed([*kept, "--backbone", installed, "--weights", "packaged"])
    return f"{error.problem}; the weights of {installed} are installed, so run {again}"


def _begun(words: Sequence[str]) -> bool:
    """Return True for a run that has begun, which keeps its backbone."""
    folders = [b for a, b in pairwise(words) if a == "--output"]
    folders += [word.partition("=")[2] for word in words if word.startswith("--output=")]
    return "--resume" in words and any((Path(folder) / "config.json").is_file() for folder in folders)


def _left_out(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the words without some options with one value each, and without what --set says about the backbone."""
    kept: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word in options:
            position += 1
        elif word == "--set":
            pairs: list[str] = []
            while position + 1 < len(words) and not words[position].startswith("--"):
                pair = list(words[position : position + 2])
                position += 2
                whole = "--backbone" in options and pair[0].startswith("backbone.")
                pairs += [] if whole or pair[0] == "backbone.weights" else pair
            kept += ["--set", *pairs] if pairs else []
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            kept.append(word)
    return kept
