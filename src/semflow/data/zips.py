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
    """The members of a zip file, for any process: forked and spawned workers open the file for themselves.

    Args:
        path: the zip file.

    Raises:
        DataError: it cannot be read, or is no zip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # With its process: workers that shared one open file would move each other's place in it.
        self._open: tuple[int, zipfile.ZipFile] | None = None
        self._archive()

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_open": None}

    def images(self) -> list[str]:
        """The names of the images, by extension, sorted; hidden files and folders are skipped."""
        names = []
        for name in self._archive().namelist():
            parts = PurePosixPath(name).parts
            hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
            if not hidden and not name.endswith("/") and PurePosixPath(name).suffix.lower() in EXTENSIONS:
                names.append(name)
        return sorted(names)

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """A member as a binary file.

        Raises:
            DataError: there is no such member, or it cannot be read.
        """
        try:
            member = self._archive().open(name)
        except (KeyError, RuntimeError, OSError, NotImplementedError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error.args[0] if error.args else error).split())
            raise DataError(
                f"{self.path}#{name}: expected a file in the archive, but: {reason}; copy it again."
            ) from None
        with member:
            yield member

    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.path}: expected a zip file, but: {error}; download it again.") from None
        return self._open[1]
