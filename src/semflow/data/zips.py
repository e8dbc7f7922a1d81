"""Images in a zip file, read without unpacking it."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from semflow.errors import DataError

from .files import EXTENSIONS

__all__ = ["ZipFiles"]


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
        names = []
        for name in self._archive().namelist():
            path = PurePosixPath(name)
            hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
            if not hidden and not name.endswith("/") and path.suffix.lower() in EXTENSIONS:
                names.append(name)
        return sorted(names)

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
