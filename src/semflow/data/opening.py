"""Open whatever layout a path holds."""

from os import PathLike
from pathlib import Path
from typing import Literal

from semflow._validation import checked
from semflow.errors import ConfigError, DataError

from .btad import BTAD, is_btad
from .cifar import CIFAR10, is_cifar10
from .files import find_images, list_images, subfolders
from .folder import ImageDataset, ImageFolder, Record
from .mvtec import MVTecAD
from .places import listed
from .shanghaitech import ShanghaiTech, is_shanghaitech
from .visa import VisA, is_visa

__all__ = ["open_dataset"]


@checked
def open_dataset(
    path: str | PathLike[str],
    split: Literal["train", "test", "predict"] = "train",
    image_size: int = 256,
    *,
    category: str | None = None,
    cache: bool = False,
) -> ImageDataset:
    """Open a file or folder, recognising its layout.

    - `train` (all normal): PATH/train/good; or images directly in PATH/train, in PATH/good or in PATH.
    - `test`: PATH/test with PATH/ground_truth, labels and masks (`MVTecAD`); subfolders `good` and others, in PATH/test
      or PATH, labels without masks; anything else, and a single file, images with unknown labels (-1).
    - `predict`: all images under PATH (under PATH/test in the layout of MVTec AD), with unknown labels and no masks.

    A product of BTAD (ok/ and ko/ in place of good/ and defect types) and a category of VisA (Data/Images) open as
    `BTAD` and `VisA`. With `category`, PATH may be the folder of all categories; `ShanghaiTech` and `CIFAR10` need one:
    the scene, and the class that is normal.

    Args:
        path: a folder, or for `test` and `predict` also one image file.
        split: what the images are for.
        image_size: side of the images in pixels.
        category: one of several in the folder; not with `predict`.
        cache: see `ImageDataset`.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("L", (8, 8)).save(Path(root) / "part.png")
    ...     for split in ("train", "predict"):
    ...         open_dataset(root, split, image_size=4)
    ImageFolder(1 normal, image_size=4, has_masks=True)
    ImageFolder(1 of unknown label, image_size=4, has_masks=False)

    Raises:
        DataError: there is nothing at the path, or its layout is none of these.
    """
    root = Path(path)
    if split not in ("train", "test", "predict"):
        raise ConfigError(f"open_dataset: expected split to be 'train', 'test' or 'predict', but got {split!r}.")
    if not root.exists():
        raise DataError(f"{root}: expected images, but there is no such folder or file; check the path.")
    if category is not None:
        return _of_category(root, split, image_size, category, cache)
    if root.is_file():
        if split == "train":
            raise DataError(f"{root}: expected a folder of normal images, but it is a file; name the folder.")
        return ImageDataset([Record(root, -1)], image_size, cache=cache)
    if is_visa(root):
        if split == "predict":  # not the masks beside them
            return ImageFolder(root / "Data" / "Images", image_size, cache=cache)
        return VisA(root, split, image_size, cache=cache)
    if split != "predict":
        _refuse_named(root)
    if is_btad(root) and (split == "train" or (split == "test" and (root / "ground_truth").is_dir())):
        return BTAD(root, split, image_size, cache=cache)
    if split == "train":
        return ImageFolder(_normal_folder(root), image_size, label=0, cache=cache)
    has_test, has_masks = (root / "test").is_dir(), (root / "ground_truth").is_dir()
    has_train = (root / "train").is_dir()
    if split == "predict":
        layout = has_test and (has_train or has_masks)
        return ImageFolder(root / "test" if layout else root, image_size, cache=cache)
    if has_test and has_masks:
        return MVTecAD(root, "test", image_size, cache=cache)
    if has_train and not has_test:
        raise DataError(f"{root}: expected test/ beside train/, but there is none; add it, or name another folder.")
    if not has_test:
        _refuse_categories(root)
    normal = "ok" if is_btad(root) else "good"
    return _labelled_by_folder(root / "test" if has_test else root, normal, image_size, cache)


def _of_category(root: Path, split: str, image_size: int, category: str, cache: bool) -> ImageDataset:
    """One category of a data set that holds several."""
    if split not in ("train", "test"):
        raise ConfigError(f"open_dataset: expected no category with split 'predict', but got {category!r}.")
    half: Literal["train", "test"] = "train" if split == "train" else "test"
    if is_shanghaitech(root):
        return ShanghaiTech(root, half, image_size, category=category, cache=cache)
    if is_cifar10(root):
        return CIFAR10(root, half, image_size, category=category, cache=cache)
    known = Path(category).name == category and (root / category).is_dir()
    if not known and root.is_dir() and _is_category(root):
        raise DataError(f"{root}: expected a folder of categories, but it is one itself; leave the category out.")
    if not known:
        names = listed([path.name for path in subfolders(root)]) if root.is_dir() else "no folders"
        raise DataError(f"{root}: expected a category {category} in it, but it holds {names}; name one of those.")
    return open_dataset(root / category, half, image_size, cache=cache)


def _normal_folder(root: Path) -> Path:
    """The folder whose images are all normal, or an error rather than a guess: training on defects is silent."""
    if (root / "train").is_dir():
        return _normal_folder(root / "train")
    if (root / "test").is_dir():
        raise DataError(f"{root}: expected train/ beside test/, but there is none; add it, or name a folder of images.")
    _refuse_categories(root)
    list_images(root)  # raises when there is none
    folders = [folder.name for folder in subfolders(root) if find_images(folder)]
    direct = bool(find_images(root, recursive=False))
    if direct and not folders:
        return root
    if folders == ["good"] and not direct:
        return root / "good"
    what = "images and also folders with images" if direct else "folders with images"
    hint = root / ("good" if "good" in folders else folders[0])
    raise DataError(
        f"{root}: expected normal images directly in it, or in good/ alone, but it holds {what} "
        f"({', '.join(folders[:5])}); name the one folder of normal images, as {hint}."
    )


def _refuse_categories(root: Path) -> None:
    """Raise DataError when a folder holds categories instead of being one."""
    names = [path.name for path in subfolders(root) if _is_category(path)]
    if names:
        raise DataError(f"{root}: expected one category, but it holds {listed(names)}; name one, as {root / names[0]}.")


def _is_category(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir() or is_visa(folder)


def _refuse_named(root: Path) -> None:
    """Raise DataError for a data set that a path alone does not open: which scene, which class is the normal one?"""
    for name, kind, found in (("ShanghaiTech", "scene", is_shanghaitech(root)), ("CIFAR10", "class", is_cifar10(root))):
        if found:
            raise DataError(
                f"{root}: expected one category, but this is {name}, which is opened {kind} by {kind}; "
                "name it by category (--category on the command line)."
            )


def _labelled_by_folder(root: Path, normal: str, image_size: int, cache: bool) -> ImageDataset:
    """Label 0 in the normal folder and 1 in the others; without a normal folder the labels are unknown."""
    paths = list_images(root)
    if not (root / normal).is_dir():
        return ImageFolder(root, image_size, cache=cache)
    for path in paths:
        if path.parent == root:
            raise DataError(
                f"{path}: expected images only in {normal}/ and in folders beside it, but this one lies outside; "
                "move it."
            )
    kinds = [path.relative_to(root).parts[0] for path in paths]
    records = [Record(path, int(kind != normal)) for path, kind in zip(paths, kinds, strict=True)]
    return ImageDataset(records, image_size, cache=cache)
