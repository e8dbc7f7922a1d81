"""Walks through folders: the images in them, and what is passed over."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from semflow.errors import DataError

from .endings import image_endings, why_unread

_SYSTEM = frozenset(
    {
        "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@tmp", "__macosx",
        "found.000", "lost+found", "network trash folder", "recycler", "system volume information", "temporary items",
        "~snapshot",
    }
)  # fmt: skip
# Files in folders that semflow wrote: name, how the content starts, and another name beside it.
_RESULTS = (
    ("scores.json", b'{\n  "semflow":', "index.html"),
    ("evaluation.json", b'{\n  "semflow":', "index.html"),
    ("watch.json", b'{\n  "semflow":', "scores.jsonl"),
    ("metrics.json", b'{\n  "detectors":', "gallery.png"),
)


class PassedOver(NamedTuple):
    """A file or folder that is not among the images, and why.

    Attributes:
        path: The file or folder.
        reason: Why it is passed over.
        unread: Whether it looks like an image, a video or an archive of them, so that the user may have meant it.

    Example:
        >>> PassedOver(Path("parts/@eaDir"), "system folder").unread
        False
    """

    path: Path
    reason: str
    unread: bool = False


class Scan(NamedTuple):
    """The images in a folder, sorted by relative path, and what was passed over."""

    images: list[Path]
    passed_over: list[PassedOver]


def scan(folder: Path, *, recursive: bool = True) -> Scan:
    """List the images in a folder, by their endings. Links to folders are followed; each folder is visited once.

    Hidden files, system folders, earlier results of semflow, links to a folder around them, and files that look like
    images or videos but are not read are passed over.
    """
    walk = _Walk(recursive)
    walk.visit(folder)
    walk.passed_over.sort()
    return Scan(sorted(walk.images, key=lambda path: path.relative_to(folder).as_posix()), walk.passed_over)


def scan_one(path: Path, root: Path) -> Scan:
    """List what `scan(root)` does of one file or folder in it, without reading the other files."""
    for folder in reversed([path, *path.parents]):
        if root in folder.parents and folder.is_dir() and (reason := _why_folder(folder)):
            return Scan([], [PassedOver(folder, reason)])
    if path.is_dir():
        return scan(path)
    walk = _Walk(recursive=False)
    if path.exists() or path.is_symlink():
        walk.look(path, path.is_symlink())
    return Scan(walk.images, walk.passed_over)


def find_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """Return the images in a folder, sorted by relative path; see `scan`."""
    return scan(folder, recursive=recursive).images


def subfolders(root: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name, without those that `scan` passes over."""
    around = os.path.realpath(root)
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and not _why_folder(path) and not (path.is_symlink() and _contains(path, around))
    )


def describe(passed_over: Iterable[PassedOver], root: Path | None = None, most: int = 5) -> str:
    """Join what was passed over for one line, with paths relative to `root`; shorten long lists.

    Example:
        >>> describe([PassedOver(Path("parts/@eaDir"), "system folder")], Path("parts"))
        '@eaDir (system folder)'
    """
    names = [(relative(item.path, root), item.reason) for item in passed_over]
    items = [f"{name if name.isprintable() else repr(name)} ({reason})" for name, reason in names]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def relative(path: Path, root: Path | None) -> str:
    """Return a path relative to `root` if it is inside."""
    return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else str(path)


class _Walk:
    def __init__(self, recursive: bool) -> None:
        self.images: list[Path] = []
        self.passed_over: list[PassedOver] = []
        self._endings, self._recursive = image_endings(), recursive
        self._links: list[Path] = []
        self._seen: dict[str, Path] = {}  # by real path

    def visit(self, folder: Path) -> None:
        self._visit(folder, os.path.realpath(folder))
        while self._links:  # after the folders themselves, so that a folder is found under its own name
            link = min(self._links)
            self._links.remove(link)
            target = os.path.realpath(link)
            if _contains(link, os.path.realpath(link.parent)):
                self._pass(link, "link to a folder around it")
            else:
                self._visit(link, target)

    def _visit(self, folder: Path, real: str) -> None:
        waiting = [(folder, real)]
        while waiting:
            folder, real = waiting.pop()
            if real in self._seen:
                self._pass(folder, f"same folder as {self._seen[real]}")
                continue
            self._seen[real] = folder
            try:
                with os.scandir(folder) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                reason = error.strerror or str(error)
                raise DataError(
                    f"{folder} must be a readable folder, but got {reason}; change its permissions or move it"
                ) from None
            for entry in found:
                path = folder / entry.name
                if not _is_folder(entry):
                    self.look(path, entry.is_symlink())
                elif reason_of := _why_folder(path):
                    self._pass(path, reason_of)
                elif not self._recursive:
                    continue
                elif entry.is_symlink():
                    self._links.append(path)
                else:
                    waiting.append((path, os.path.join(real, entry.name)))  # noqa: PTH118 - faster for many folders

    def look(self, path: Path, is_link: bool) -> None:
        is_image = path.suffix.lower() in self._endings
        if path.name.startswith("."):
            if is_image:
                self._pass(path, "hidden file")
        elif is_image:
            self.images.append(path)
        elif is_link and not path.exists():
            self._pass(path, "broken link", unread=True)
        elif reason := why_unread(path):
            self._pass(path, reason, unread=True)

    def _pass(self, path: Path, reason: str, *, unread: bool = False) -> None:
        self.passed_over.append(PassedOver(path, reason, unread))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _contains(link: Path, folder: str) -> bool:
    """Return True if a link leads to a folder, given by its real path, or to a folder around it."""
    return Path(folder).is_relative_to(os.path.realpath(link))


def _why_folder(path: Path) -> str | None:
    """Return why a folder is passed over, or None."""
    if path.name.lower() in _SYSTEM:
        return "system folder"
    if path.name.startswith("."):
        return "hidden folder"
    for name, start, beside in _RESULTS:
        try:
            with (path / name).open("rb") as file:
                if file.read(len(start)) == start and (path / beside).exists():
                    return "results of semflow"
        except OSError:  # the file does not exist, or listing the folder reports the problem
            continue
    return None
