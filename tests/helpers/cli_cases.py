"""Images, command lines and comparisons for the tests of the command line."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZE = 64
IMAGES = 12


def picture(rng: np.random.Generator) -> np.ndarray:
    """Return noisy stripes."""
    stripes = 120 + 60 * np.sin(np.arange(SIZE) / 3)[None, :, None]
    return (stripes + rng.normal(0, 8, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def save(values: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


SMALL = [
    *("--recipe", "sanflow"),
    *("--backbone", "resnet18", "--weights", "random", "--image-size", str(SIZE)),
    *("--set", "couplings.blocks", "1", "couplings.position_channels", "16", "backbone.strides", "8,16"),
]


def fit_words(data: Path, output: Path, *more: str) -> list[str]:
    words = ["fit", "--data", str(data), "--output", str(output), "--epochs", "1", "--batch-size", "4"]
    return [*words, "--device", "cpu", *more, *SMALL]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file under a folder; None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def page_data(folder: Path) -> Any:
    """Return the data of the page in a folder of results."""
    page = (folder / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return standard error, which must be one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def make_photos(folder: Path) -> Path:
    rng = np.random.default_rng(3)
    for number in range(IMAGES):
        save(picture(rng), folder / "photos" / f"{number % 3}" / f"{number:02d}.png")
    return folder / "photos"


def words(run: Path, photos: Path, output: Path, *more: str) -> list[str]:
    start = ["predict", "--model", str(run), "--input", str(photos), "--output", str(output), "--device", "cpu"]
    return [*start, "--batch-size", "2", *more]


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def same_results(first: Path, second: Path) -> float:
    """Compare two output folders, up to rounding. Return the largest relative difference of the scores.

    A restarted command forms other batches, whose sums are rounded differently.
    """
    largest = 0.0
    ours, theirs = snapshot(first), snapshot(second)
    assert ours.keys() == theirs.keys()
    tables = [list(csv.DictReader((folder / "scores.csv").open(newline=""))) for folder in (first, second)]
    for a, b in zip(*tables, strict=True):
        found, expected = float(a.pop("score")), float(b.pop("score"))
        assert found == pytest.approx(expected, rel=1e-5)
        largest = max(largest, abs(found - expected) / max(abs(expected), 1.0))
        assert a == b
    for name in ours:
        if name.endswith(".npy"):
            np.testing.assert_allclose(np.load(first / name), np.load(second / name), rtol=1e-5, atol=1e-5)
    return largest


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise KeyboardInterrupt after `count` images."""
    from semflow.app.cli import predict

    write = predict.write_image
    calls: list[object] = []

    def stop(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > count:
            raise KeyboardInterrupt
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "write_image", stop)
