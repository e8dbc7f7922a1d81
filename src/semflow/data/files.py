"""Finding image files, always in the same order."""

import os
from os import PathLike
from pathlib import Path

from semflow.errors import DataError

__all__ = ["EXTENSIONS", "find_images", "list_images", "subfolders"]

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What counts as an image file, compared in lower case."""


def find_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """The image files under a folder, by extension, sorted by posix relative path; hidden files and folders skipped.

    What is called as an image but is none, such as a broken link, is found too: decoding says what is wrong with it.
    Links to folders are not followed.

    Raises:
        DataError: a folder cannot be read: what is in it must not be missing in silence.
    """
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        # In place: os.walk goes on with what is left in the list.
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in EXTENSIONS and not name.startswith("."):
                found.append((path.relative_to(folder).as_posix(), path))
    return [path for _, path in sorted(found)]


def _refuse(error: OSError) -> None:
    reason = error.strerror or str(error)
    raise DataError(f"{error.filename}: expected a folder that can be read, but: {reason}; allow it, or move it away.")


def list_images(root: str | PathLike[str]) -> list[Path]:
    """As `find_images`, recursively, but finding nothing is an error.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    folder = Path(root)
    if not folder.exists():
        raise DataError(f"{folder}: expected a folder of images, but there is none; check the path.")
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, but it is a file; name the folder that holds it.")
    found = find_images(folder)
    if not found:
        known = " ".join(sorted(EXTENSIONS))
        raise DataError(f"{folder}: expected a folder with images ({known}), but it holds none; check the path.")
    return found


def subfolders(root: Path) -> list[Path]:
    """The folders directly in a folder, sorted by name; hidden ones skipped."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
