"""The data of a cell: which categories a folder holds, how one is opened, and a fingerprint of its files."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from semflow.errors import DataError

__all__ = ["Data", "categories"]

Kind = Literal["mvtec", "cifar10"]
PARTS = ("train", "test", "ground_truth")
WHOLE = 1 << 16


@dataclass(frozen=True)
class Data:
    """One category of a data set (for `cifar10` the class that is normal)."""

    kind: Kind
    root: str
    category: str

    def open(self, split: Literal["train", "test"], image_size: int) -> Any:
        """The data set of `semflow.data`; training images of MVTec AD are decoded once and kept."""
        from semflow import data

        if self.kind == "cifar10":
            return data.CIFAR10(self.root, split, image_size, category=self.category)
        return data.MVTecAD(self.root, split, image_size, category=self.category, cache=split == "train")

    def fingerprint(self) -> str:
        """A hash of names, sizes and contents (of a file above 128 KiB its first and last 64 KiB); not of the root."""
        top = Path(self.root)
        if self.kind == "cifar10":
            return _fingerprint(top, [top] if top.is_file() else top.rglob("*"))
        folder = top / self.category
        return _fingerprint(folder, (p for name in PARTS for p in (folder / name).rglob("*")))


def categories(kind: Kind, root: str | Path) -> list[str]:
    """The categories that a data set's folder holds.

    Raises:
        DataError: there is none.
    """
    if not Path(root).exists():
        raise DataError(f"--data {root}: expected a data set, but there is no such folder; check the path")
    if kind == "cifar10":
        from semflow.data.cifar import CIFAR10_CLASSES

        return list(CIFAR10_CLASSES)
    found = sorted(p.name for p in Path(root).iterdir() if (p / "train").is_dir() and (p / "test").is_dir())
    if not found:
        raise DataError(f"--data {root}: expected folders with train/ and test/ in it, one a category, but found none")
    return found


def _fingerprint(root: Path, paths: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(p for p in paths if p.is_file()):
        size = path.stat().st_size
        whole.update(f"{path.relative_to(root).as_posix()}\0{size}\0".encode(errors="backslashreplace"))
        with path.open("rb") as file:
            whole.update(file.read(2 * WHOLE if size <= 2 * WHOLE else WHOLE))
            if size > 2 * WHOLE:
                file.seek(-WHOLE, 2)
                whole.update(file.read())
    return whole.hexdigest()[:16]
