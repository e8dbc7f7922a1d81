"""The file of a part: rows, figures for the targets, and what failed, written after every measurement."""

import gc
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
LOST = ("an illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")
"""After these errors no further work is possible on the device in the same process."""


def write_atomic(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read a file of results; without one, or with a broken one, the result is empty."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Record:
    """Results of a part.

    Args:
        path: JSON file.
        head: where and how they were measured.
        seconds: time of the part; measurements that do not fit are left for another run.
    """

    def __init__(self, path: Path, head: dict[str, Any], seconds: float) -> None:
        self.path, self.began, self.seconds = path, time.monotonic(), seconds
        self.content: dict[str, Any] = {
            "status": "running", **head, "figures": {}, "rows": [], "skipped": [], "failed": [], "texts": {}
        }  # fmt: skip
        self.write()

    def write(self) -> None:
        self.content["seconds"] = round(time.monotonic() - self.began, 1)
        write_atomic(self.path, json.dumps(self.content, indent=2, default=str) + "\n")

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.began + self.seconds - time.monotonic()

    def row(self, what: str, **values: Any) -> None:
        """Add a measurement."""
        self.content["rows"].append({"what": what, **values})
        print(f"  {what}: " + ", ".join(f"{key} {value}" for key, value in values.items()), flush=True)
        self.write()

    def figure(self, name: str, value: float) -> None:
        """Add the figure of a target."""
        self.content["figures"][name] = float(f"{value:.4g}")
        self.write()

    def text(self, name: str, text: str) -> None:
        """Add a text, such as the table of a profile."""
        self.content["texts"][name] = text
        self.write()

    def skip(self, what: str, reason: str) -> None:
        """Add what is not measured."""
        self.content["skipped"].append({"what": what, "reason": reason})
        print(f"  {what}: skipped, {reason}", flush=True)
        self.write()

    def attempt(self, what: str, measure: Callable[[], T], least: float = 5.0) -> T | None:
        """Return what `measure` returns, or None if it fails or less than `least` seconds are left."""
        if self.left() < least:
            self.content["late"] = True
            self.skip(what, "no time was left")
            return None
        try:
            return measure()
        except Exception as error:
            self.content["failed"].append(
                {"what": what, "error": describe(error), "traceback": traceback.format_exc()[-3000:]}
            )
            print(f"  {what}: failed, {describe(error)}", flush=True)
            self.write()
            if any(part in str(error) for part in LOST):
                raise
        _free()
        return None

    def finish(self, status: str | None = None, reason: str | None = None) -> None:
        """Set the status: `done`, or `incomplete` if time was short."""
        self.content["status"] = status or ("incomplete" if self.content.get("late") else "done")
        if reason:
            self.content["reason"] = reason
        self.write()


def describe(error: BaseException) -> str:
    """Return class and message of an error in one line of limited length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _free() -> None:
    """Release the tensors of a failed measurement, which may have filled the memory."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
