"""Data sets of the benchmarks: their categories, opening one, and a fingerprint of its files."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from semflow.errors import DataError

Kind = Literal["mvtec", "visa", "stc", "cifar10"]
CLASSES: dict[Kind, str] = {"mvtec": "MVTecAD", "visa": "VisA", "stc": "ShanghaiTech", "cifar10": "CIFAR10"}
PART = 1 << 16


@dataclass(frozen=True)
class Data:
    """One category of MVTec AD or VisA, a scene of STC, or the normal class of CIFAR-10."""

    kind: Kind
    root: str
    category: str

    def open(self, split: Literal["train", "test"], image_size: int) -> Any:
        """Open the data set of `semflow.data`; training images of MVTec AD and VisA are decoded once and cached."""
        from semflow import data

        cache = split == "train" and self.kind in ("mvtec", "visa")
        return getattr(data, CLASSES[self.kind])(self.root, split, image_size, category=self.category, cache=cache)

    def fingerprint(self) -> str:
        """Return a hash of the files' relative names, sizes and contents.

        Only the first and last 64 KiB of a file above 128 KiB are read, and nothing of STC, which has 300,000 files.
        """
        top = Path(self.root)
        if top.is_file():
            return _fingerprint(top.parent, [top])
        patterns = {
            "mvtec": [f"{self.category}/{part}/**/*" for part in ("train", "test", "ground_truth")],
            "visa": [f"{self.category}/Data/**/*", "split_csv/*"],
            "stc": [
                f"{part}/**/{self.category}_*{inside}" for part in ("training", "testing") for inside in ("", "/*")
            ],
            "cifar10": ["**/*"],
        }[self.kind]
        paths = {path for pattern in patterns for path in top.glob(pattern)}
        return _fingerprint(top, paths, contents=self.kind != "stc")


def categories(kind: Kind, root: str | Path) -> list[str]:
    """Return the categories in the folder of a data set."""
    top = Path(root)
    if not top.exists():
        raise DataError(f"--data {root} must be a data set, but got no such folder; check the path")
    if kind == "cifar10":
        from semflow.data import CIFAR10_CLASSES

        return list(CIFAR10_CLASSES)
    if kind == "stc":
        found = sorted({path.name.partition("_")[0] for path in top.glob("testing/test_frame_mask/*_*.npy")})
        expected = "testing/test_frame_mask/SCENE_CLIP.npy"
    else:
        parts = ("train", "test") if kind == "mvtec" else ("Data/Images",)
        found = sorted(p.name for p in top.glob("*") if all((p / part).is_dir() for part in parts))
        expected = " and ".join(f"CATEGORY/{part}" for part in parts)
    if not found:
        raise DataError(f"--data {root} must contain {expected}, but got none; give the folder of all categories")
    return found


def _fingerprint(root: Path, paths: Iterable[Path], contents: bool = True) -> str:
    whole = hashlib.sha256()
    for path in sorted(p for p in paths if p.is_file()):
        size = path.stat().st_size
        whole.update(f"{path.relative_to(root).as_posix()}\0{size}\0".encode(errors="backslashreplace"))
        if contents:
            with path.open("rb") as file:
                whole.update(file.read(2 * PART if size <= 2 * PART else PART))
                if size > 2 * PART:
                    file.seek(-PART, 2)
                    whole.update(file.read())
    return whole.hexdigest()[:16]
