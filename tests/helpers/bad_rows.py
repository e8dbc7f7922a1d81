"""Rows of the table of bad input, and how they are tried."""

import contextlib
import io
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image

from semflow.app.cli import main
from semflow.errors import SemflowError

SIZE = 64
SECONDS = 60  # limit per row
SMALL = ("--backbone", "test_efficientnet", "--weights", "random", "--image-size", str(SIZE))
SMALL_ARGUMENTS = ("--set", "couplings.blocks", "1", "couplings.position_channels", "8")


class CommandError(Exception):
    """Exit code 2 of a command; the message is its standard error."""


@dataclass
class Workspace:
    """Empty folder in which a row creates its input, with a trained run and its detector."""

    path: Path
    run: Path
    detector: Any

    def file(self, name: str, content: bytes = b"") -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def picture(self, name: str, image: Image.Image | None = None, seed: int = 0, **options: Any) -> Path:
        """Save an image; noisy stripes by default."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image if image is not None else stripes(seed)).save(path, **options)
        return path

    def dataset(self, train: int = 4, good: int = 2, bad: int = 2) -> Path:
        """Create a small data set in the layout of MVTec AD."""
        seed = 0
        for folder, count in (("train/good", train), ("test/good", good), ("test/hole", bad)):
            for number in range(count):
                seed += 1
                self.picture(f"data/{folder}/{number}.png", seed=seed)
        for number in range(bad):
            self.mask(f"data/ground_truth/hole/{number}_mask.png")
        return self.path / "data"

    def mask(self, name: str, size: tuple[int, int] = (SIZE, SIZE), level: int = 255, inside: bool = False) -> Path:
        values = np.full(size, level if inside else 0, np.uint8)
        values[8:24, 8:24] = level
        return self.picture(name, Image.fromarray(values))

    def command(self, *words: object) -> str:
        """Run a command. Return its standard error and output, or raise CommandError for exit code 2."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
        if code == 2:
            raise CommandError(err.getvalue().strip())
        if code != 0:
            raise RuntimeError(f"exit code {code}: {err.getvalue()}")
        return err.getvalue() + out.getvalue()

    def fit(self, *words: object) -> str:
        base = (
            "fit",
            "--data",
            self.path / "data",
            "--output",
            self.path / "run",
            "--epochs",
            "1",
            "--recipe",
            "sanflow",
            *SMALL,
        )
        return self.command(*base, "--device", "cpu", *words, *(() if "--set" in words else SMALL_ARGUMENTS))

    def predict(self, *words: object) -> str:
        return self.command(
            "predict", "--model", self.run, "--input", self.path / "photos", "--output", self.path / "results", *words
        )

    def evaluate(self, *words: object) -> str:
        return self.command("evaluate", "--model", self.run, "--data", self.path / "data", *words)


@dataclass(frozen=True)
class Refused:
    """Expected error, and words that its message must contain."""

    kind: type[Exception]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Works:
    """Expected value, and its description for the page."""

    description: str
    equals: object = True


@dataclass(frozen=True)
class Row:
    """One kind of bad input.

    Args:
        name: name for the page.
        act: creates the input in a workspace and uses it.
        expected: expected error or value.
        needs: returns why this machine cannot try it, or "".
    """

    name: str
    act: Callable[[Workspace], object]
    expected: Refused | Works
    needs: Callable[[], str] = field(default=lambda: "")


def refused(kind: type[Exception], *words: str) -> Refused:
    return Refused(kind, words)


def stripes(seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    rng = np.random.default_rng(seed)
    wave = 120 + 60 * np.sin(np.arange(size[1]) / 3)[None, :, None]
    return Image.fromarray((wave + rng.normal(0, 8, (*size, 3))).clip(0, 255).astype(np.uint8))


def batch(count: int = 2) -> torch.Tensor:
    values = np.stack([np.asarray(stripes(seed)) for seed in range(count)])
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous().float() / 255


@dataclass(frozen=True)
class Observed:
    """Outcome of a row: a value or an error."""

    value: object = None
    error: Exception | None = None


def observe(row: Row, workspace: Workspace) -> Observed:
    """Try a row. Catch only the errors that the library may raise."""
    with _time_limit(SECONDS):
        try:
            return Observed(value=row.act(workspace))
        except (SemflowError, CommandError) as error:
            return Observed(error=error)


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt(f"must finish within {seconds} s")  # not an Exception, which the library might catch

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
