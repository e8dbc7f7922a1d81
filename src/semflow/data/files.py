"""Folders of images and zip files, and errors for those that are missing."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import IO

from semflow.errors import DataError

from .endings import image_endings
from .walking import Scan, describe, scan

_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")


def list_images(root: str | PathLike[str]) -> Scan:
    """Return the images in a folder and its subfolders, and what was passed over; raise DataError without images."""
    folder = require_folder(Path(root), "a folder of images")
    found = scan(folder)
    if not found.images:
        only = f", only {describe(found.passed_over, folder)}" if found.passed_over else ""
        raise DataError(
            f"{folder} must contain images (.png .jpg .tif .bmp or another ending that Pillow reads), but got "
            f"none{only}; check the path"
        )
    return found


def archives(folder: Path) -> list[Path]:
    """Return the packed archives directly in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(_ARCHIVES) and path.is_file())


def require_folder(folder: Path, expected: str, advice: str = "check the path") -> Path:
    """Return the folder if it exists; otherwise raise DataError, with advice if an archive is still packed."""
    if folder.is_dir():
        return folder
    found = "no such folder"
    if folder.is_file():
        packed = folder.name.lower().endswith(_ARCHIVES)
        found = "a packed archive" if packed else "a file"
        advice = "unpack it and name the folder" if packed else "name the folder that contains it"
    else:
        parent = next((parent for parent in folder.parents[:2] if parent.is_dir()), None)
        if parent is not None and (packed_files := archives(parent)):
            found = f"no such folder, only the archive {packed_files[0].name} in {parent}"
            advice = "unpack it there if it contains this dataset"
    raise DataError(f"{folder} must be {expected}, but got {found}; {advice}")


def listed(names: list[str], most: int = 5) -> str:
    """Join names for an error message, and shorten long lists."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in total)" if len(names) > most else "")


class ZipFiles:
    """Members of a zip file, readable from any process: each worker opens the file itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Stored with the process ID: workers that shared one open file would move each other's position in it.
        self._open: tuple[int, zipfile.ZipFile] | None = None
        self._archive()

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_open": None}

    def images(self) -> list[str]:
        """Return the names of the images, sorted; skip hidden files and folders."""
        endings = image_endings()

        def is_image(name: str) -> bool:
            path = PurePosixPath(name)
            hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
            return not hidden and not name.endswith("/") and path.suffix.lower() in endings

        return sorted(filter(is_image, self._archive().namelist()))

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Open a member as a binary file; raise DataError if it does not exist or cannot be read."""
        try:
            member = self._archive().open(name)
        except (KeyError, RuntimeError, OSError, NotImplementedError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error.args[0] if error.args else error).split())
            raise DataError(
                f"{self.path}#{name} must be a readable zip member, but got the error {reason!r}; copy it again"
            ) from None
        with member:
            yield member

    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(
                    f"{self.path} must be a zip file, but got the error {str(error)!r}; copy it again"
                ) from None
        return self._open[1]
