"""Finding image files, always in the same order."""

from os import PathLike
from pathlib import Path

from semflow.errors import DataError

__all__ = ["EXTENSIONS", "find_images", "list_images", "subfolders"]

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What counts as an image file, compared in lower case."""


def find_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """The image files under a folder, by extension, sorted by posix relative path; hidden files and folders skipped."""
    found = []
    for path in folder.rglob("*") if recursive else folder.iterdir():
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            relative = path.relative_to(folder)
            if not any(part.startswith(".") for part in relative.parts):
                found.append((relative.as_posix(), path))
    return [path for _, path in sorted(found)]


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
