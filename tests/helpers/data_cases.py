"""Small trees of images for the tests of datasets, and a check of their errors."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semflow.data import ImageDataset
from semflow.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def save_gray(path: Path, level: int = 100, size: tuple[int, int] = (12, 8)) -> Path:
    """Save a gray image of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)
    return path


def save_index_mask(path: Path, values: tuple[int, int] = (1, 0), size: tuple[int, int] = (12, 8)) -> Path:
    """Save an index image like the masks of VisA: one value in the left half, another in the right half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0]), values[1], np.uint8)
    pixels[:, : size[0] // 2] = values[0]
    Image.fromarray(pixels).save(path)
    return path


def relative(dataset: ImageDataset, root: Path) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in dataset.paths]


def left_half_is_anomalous(dataset: ImageDataset, index: int) -> bool:
    """Return True if a sample's mask is true in exactly the left half, and False if it is empty; fail otherwise."""
    mask = dataset[index].anomaly_mask
    assert mask is not None
    assert mask.dtype == torch.bool
    half = mask.shape[1] // 2
    assert not mask[:, half:].any()
    assert mask[:, :half].all() == mask[:, :half].any()
    return bool(mask.any())


def fails(function: Callable[[], object], path: object, *parts: object) -> None:
    """Expect a DataError of one line with path, expectation, finding and advice that contains the parts."""
    with pytest.raises(DataError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} must "), message
    assert ", but got " in message, message
    assert "; " in message, message
    assert not message.endswith("."), message
    for part in parts:
        assert str(part) in message, message


def positions_in(path: Path) -> list[int]:
    """Return the position of each open descriptor of a file in this process."""
    if not Path("/proc/self/fdinfo").is_dir():
        pytest.skip("positions in open files are read from /proc, which this system lacks")
    links = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.resolve() == path.resolve()]
    return [int((Path("/proc/self/fdinfo") / link.name).read_text().split()[1]) for link in links]


def in_a_forked_child(function: Callable[[], object]) -> None:
    """Run a function in a fork of this process, which shares the open files, like a worker of a data loader."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
