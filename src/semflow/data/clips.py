"""Clips of a video data set on the disk: their frames in time order, and the arrays of labels and masks beside them."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semflow.errors import DataError

from .files import find_images, subfolders

__all__ = ["UNPACK", "check_rows", "find_clips", "list_frames", "load_rows", "no_scene", "of_scene"]

UNPACK = "unpack the data set completely"
_CLIP = re.compile(r"\d+_\d+")


def find_clips(folder: Path, ending: str = "") -> list[Path]:
    """The clips in a folder: subfolders, or files with an ending, named SCENE_CLIP."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.suffix.lower() == ending] if ending else subfolders(folder)
    return sorted(path for path in found if _CLIP.fullmatch(path.stem))


def of_scene(clips: Sequence[Path], scene: str) -> list[Path]:
    """The clips of one scene."""
    return [path for path in clips if path.stem.split("_")[0] == scene]


def no_scene(folder: Path, scene: str, clips: Sequence[Path]) -> DataError:
    """The error that a scene has none of the clips in a folder."""
    scenes = sorted({path.stem.split("_")[0] for path in clips})
    has = f"only of {', '.join(scenes)}" if scenes else "none at all"
    return DataError(
        f"{folder}: expected clips of scene {scene!r}, but there are {has}; name one of these, or {UNPACK}."
    )


def list_frames(folder: Path) -> list[Path]:
    """The frames of a clip by number: a thousandth frame sorts behind the hundredth, and none may be missing."""
    numbered: list[tuple[int, Path]] = []
    for path in find_images(folder, recursive=False):
        if not path.stem.isdecimal():
            raise DataError(f"{path}: expected a frame with a number for its name, but got {path.name!r}; move it.")
        numbered.append((int(path.stem), path))
    if not numbered:
        raise DataError(f"{folder}: expected frames, but it holds none; {UNPACK}.")
    numbered.sort()
    for (before, path), (number, _) in pairwise(numbered):
        if number != before + 1:
            raise DataError(
                f"{folder}: expected frame after frame, but {path.name} is followed by number {number}; {UNPACK}."
            )
    return [path for _, path in numbered]


def load_rows(file: Path, axes: tuple[str, ...]) -> NDArray[np.generic]:
    """An array that stays on the disk until rows of it are asked for."""
    expected = f"an array ({', '.join(axes)}{',' * (len(axes) == 1)}) of numbers in the format of NumPy"
    try:
        rows = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise DataError(f"{file}: expected {expected}, but there is none; {UNPACK}.") from None
    except (ValueError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: expected {expected}, but: {reason}; copy or unpack it again.") from None
    if rows.ndim != len(axes) or rows.dtype.kind not in "biuf":
        raise DataError(
            f"{file}: expected {expected}, but got {rows.dtype} of shape {rows.shape}; take the official one."
        )
    return rows


def check_rows(file: Path, rows: int, folder: Path, frames: int) -> None:
    """Raise DataError unless an array has a row for each frame of a folder."""
    if rows != frames:
        raise DataError(
            f"{file}: expected a row for each of the {frames} frames in {folder}, but it has {rows}; {UNPACK}."
        )
