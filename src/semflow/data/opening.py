"""Open whatever layout a path holds."""

from os import PathLike
from pathlib import Path
from typing import Literal

from semflow.data.folder import ImageDataset, ImageFolder, Record, find_images, list_images
from semflow.data.mvtec import MVTecAD
from semflow.errors import ConfigError, DataError

__all__ = ["open_dataset"]


def open_dataset(
    path: str | PathLike[str],
    split: Literal["train", "test", "predict"] = "train",
    image_size: int = 256,
    *,
    cache: bool = False,
) -> ImageDataset:
    """Open a file or folder, recognising its layout.

    - `train` (all normal): PATH/train/good; or images directly in PATH/train, in PATH/good or in PATH.
    - `test`: PATH/test with PATH/ground_truth, labels and masks (`MVTecAD`); subfolders `good` and others, in PATH/test
      or PATH, labels without masks; anything else, and a single file, images with unknown labels (-1).
    - `predict`: the same images as `test`, with unknown labels, and no mask is looked for.

    Args:
        path: a folder, or for `test` and `predict` also one image file.
        split: what the images are for.
        image_size: side of the images in pixels.
        cache: see `ImageDataset`.

    Raises:
        DataError: there is nothing at the path, or its layout is none of these.
    """
    root = Path(path)
    if split not in ("train", "test", "predict"):
        raise ConfigError(f"open_dataset: expected split to be 'train', 'test' or 'predict', but got {split!r}.")
    if not root.exists():
        raise DataError(f"{root}: expected a folder of images, but there is none; check the path.")
    if root.is_file():
        if split == "train":
            raise DataError(f"{root}: expected a folder of normal images, but it is a file; name the folder.")
        return ImageDataset([Record(root, -1)], image_size, cache=cache)
    if split == "train":
        return ImageFolder(_normal_folder(root), image_size, label=0, cache=cache)
    if not (root / "test").is_dir():
        if (root / "train").is_dir():
            raise DataError(f"{root}: expected test/ beside train/, but there is none; add it, or name another folder.")
        if split == "test":
            _refuse_categories(root)
        return (
            _labelled_by_folder(root, image_size, cache)
            if split == "test"
            else ImageFolder(root, image_size, cache=cache)
        )
    if split == "predict":
        return ImageFolder(root / "test", image_size, cache=cache)
    if (root / "ground_truth").is_dir():
        return MVTecAD(root, "test", image_size, cache=cache)
    return _labelled_by_folder(root / "test", image_size, cache)


def _folders_with_images(root: Path) -> list[str]:
    inside = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path.name for path in inside if find_images(path))


def _refuse_categories(root: Path) -> None:
    categories = sorted(path.name for path in root.iterdir() if (path / "train").is_dir() or (path / "test").is_dir())
    if categories:
        raise DataError(
            f"{root}: expected one category, but it holds {', '.join(categories)}; name one, as {root / categories[0]}."
        )


def _normal_folder(root: Path) -> Path:
    """The folder whose images are all normal, or an error rather than a guess: training on defects is silent."""
    if (root / "train").is_dir():
        return _normal_folder(root / "train")
    if (root / "test").is_dir():
        raise DataError(f"{root}: expected train/ beside test/, but there is none; add it, or name a folder of images.")
    _refuse_categories(root)
    list_images(root)  # raises when there is none
    folders = _folders_with_images(root)
    direct = bool(find_images(root, recursive=False))
    if direct and not folders:
        return root
    if folders == ["good"] and not direct:
        return root / "good"
    what = "images and also folders with images" if direct else "folders with images"
    hint = root / "good" if "good" in folders else root / folders[0]
    raise DataError(
        f"{root}: expected normal images directly in it, or in good/ alone, but it holds {what} "
        f"({', '.join(folders[:5])}); name the one folder of normal images, as {hint}."
    )


def _labelled_by_folder(root: Path, image_size: int, cache: bool) -> ImageDataset:
    """Label 0 in good/, 1 in the other subfolders; -1 everywhere when there is no good/ or images lie beside it."""
    paths = list_images(root)
    if not (root / "good").is_dir() or any(path.parent == root for path in paths):
        return ImageFolder(root, image_size, cache=cache)
    labels = [0 if path.relative_to(root).parts[0] == "good" else 1 for path in paths]
    return ImageDataset([Record(*pair) for pair in zip(paths, labels, strict=True)], image_size, cache=cache)
