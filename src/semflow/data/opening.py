"""Open a dataset by its path, whatever its layout."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from semflow._validation import Size, checked
from semflow.errors import ConfigError, DataError

from .btad import BTAD, is_btad
from .categories import Categories
from .cifar import CIFAR10, is_cifar10
from .dataset import ImageDataset, ImageFolder, Record
from .files import list_images, listed
from .mvtec import MVTecAD
from .mvtec_ad2 import MASKS, MVTecAD2, is_mvtec_ad2, is_public_test, list_public, public_records
from .mvtec_loco import MVTecLOCO, is_mvtec_loco
from .real_iad import RealIAD, is_real_iad, real_iad_categories, without_masks
from .regions import matched_regions
from .resizing import Resize
from .shanghaitech import ShanghaiTech, is_shanghaitech, scenes
from .visa import VisA, is_visa
from .walking import PassedOver, find_images, scan, subfolders

# Data sets that are one folder for all categories, what their category is, and how they are recognized
_WITH_CATEGORY: tuple[tuple[Any, str, Callable[[Path], bool]], ...] = (
    (ShanghaiTech, "scene", is_shanghaitech),
    (CIFAR10, "normal class", is_cifar10),
    (RealIAD, "category", is_real_iad),
)


@checked
def open_dataset(
    path: str | PathLike[str],
    split: Literal["train", "test", "predict"] = "train",
    image_size: Size | None = 256,
    *,
    category: str | None = None,
    categories: Sequence[str] | Literal["all"] | None = None,
    cache: bool = False,
    resize: Resize = "stretch",
    regions: str | PathLike[str] | None = None,
) -> ImageDataset:
    """Open a file or folder and recognize its layout.

    - `train` (all normal): PATH/train/good; or images directly in PATH/train, in PATH/good or in PATH.
    - `test`: PATH/test with PATH/ground_truth, with labels and masks (`MVTecAD`); subfolders `good` and others in
      PATH/test or PATH, with labels but no masks; anything else, and a single file, images with unknown labels (-1).
    - `predict`: all images in PATH (in PATH/test in the layout of MVTec AD), with unknown labels and no masks.

    A product of BTAD (ok/ and ko/ instead of good/ and defect types) and a category of VisA (Data/Images) open as
    `BTAD` and `VisA`, and the test images of MVTec AD 2 (test_public/) and MVTec LOCO AD (a folder of masks for each
    image) as `MVTecAD2` and `MVTecLOCO`. With `category`, PATH may be the folder of all categories; `ShanghaiTech`,
    `CIFAR10` and `RealIAD` require one: the scene, the normal class, and the category.

    Args:
        path: A folder; for `test` and `predict` also a single image file.
        split: Use of the images.
        image_size: Side of the images in pixels, or (height, width); None keeps their own size.
        category: One of the categories in the folder; not with `predict`.
        categories: Several of them as one data set, see `Categories`; `all` takes those of `categories_in`.
        cache: See `ImageDataset`.
        resize: See `ImageDataset`.
        regions: Mask of the region of interest, or a folder with one for each image, of the same name.

    Raises:
        DataError: If the path does not exist or its layout is unknown.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (32, 32)).save(Path(root, "0.png"))
        ...     open_dataset(root, "train")
        ImageFolder(1 normal, image_size=256, has_masks=True)
    """
    options: dict[str, Any] = {"image_size": image_size, "cache": cache, "resize": resize}
    if categories is not None:
        if category is not None:
            raise ConfigError(f"category must be None if categories are given, but got {category!r}")
        dataset: ImageDataset = _opened_together(Path(path), split, categories, options)
    else:
        dataset = _opened(Path(path), split, category, **options)
    if regions is not None:
        found = matched_regions([record.path for record in dataset.records], Path(regions))
        dataset.set_regions(found)
    return dataset


def categories_in(root: str | PathLike[str], split: Literal["train", "test"] = "train") -> list[str]:
    """Return the names of the categories in a folder, sorted; none if it is a single category.

    These are the subfolders with train/, test/ or the layout of VisA, the scenes of ShanghaiTech that have clips of the
    split, and the categories of Real-IAD.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("screw", "nut", "notes"):
        ...         Path(root, name, "notes" if name == "notes" else "train").mkdir(parents=True)
        ...     categories_in(root)
        ['nut', 'screw']
    """
    folder = Path(root)
    if not folder.is_dir() or is_cifar10(folder):
        return []
    if is_shanghaitech(folder):
        return scenes(folder, split)
    if is_real_iad(folder):
        return real_iad_categories(folder)
    return [] if _is_category(folder) else [path.name for path in subfolders(folder) if _is_category(path)]


def _opened_together(
    root: Path, split: Literal["train", "test", "predict"], categories: Sequence[str], options: dict[str, Any]
) -> Categories:
    """Open several categories, one after the other; `all` takes those of `categories_in`."""
    if split == "predict":
        raise ConfigError(f"categories must be None with split predict, but got {listed(list(categories))}")
    if root.exists() and is_cifar10(root):
        raise ConfigError(
            f"categories must be None for CIFAR-10, whose classes are anomalies of each other, but got "
            f"{categories if isinstance(categories, str) else listed(list(categories))}; name one class as category"
        )
    given = [categories] if isinstance(categories, str) else list(categories)
    every = given == ["all"]
    names = categories_in(root, split) if every else given
    twice = next((name for name in given if given.count(name) > 1 or (name == "all" and not every)), None)
    if twice is not None or not given:
        found = "none" if twice is None else f"{twice} beside others" if twice == "all" else f"{twice} twice"
        raise ConfigError(f"categories must be different names, or all alone, but got {found}")
    if not names:
        expected = "a folder of categories, with train/ or test/ in each"
        if not root.is_dir():
            raise DataError(f"{root} must be {expected}, but got no such folder; check the path")
        if _is_category(root):
            raise DataError(f"{root} must be {expected}, but got a single category; leave the categories out")
        found = listed([path.name for path in subfolders(root)]) or "no folders"
        raise DataError(f"{root} must be {expected}, but got {found}; name the categories")
    parts = {name: _opened(root, split, name, **options) for name in names}
    apart = not any(matches(root) for _, _, matches in _WITH_CATEGORY)  # a folder for each category
    others = [path for path in subfolders(root) if path.name not in names] if every and apart else []
    beside = [PassedOver(path, "no category: no train/ or test/") for path in others if find_images(path)]
    return Categories(parts, root=root, passed_over=beside)


def _opened(
    root: Path, split: Literal["train", "test", "predict"], category: str | None, **options: Any
) -> ImageDataset:
    """Open a dataset; `options` are those of `ImageDataset`."""
    if not root.exists():
        raise DataError(f"{root} must be a folder or file of images, but got no such path; check the path")
    if category is not None:
        if split == "predict":
            raise ConfigError(f"category must be None with split predict, but got {category!r}")
        for kind, _, matches in _WITH_CATEGORY:
            if matches(root):
                whole: ImageDataset = kind(root, split, category=category, **options)
                return whole
        if Path(category).name == category and (root / category).is_dir():
            return _opened(root / category, split, None, **options)
        if root.is_dir() and _is_category(root):
            raise DataError(f"{root} must be a folder of categories, but got a single category; leave the category out")
        names = listed([path.name for path in subfolders(root)]) if root.is_dir() else "no folders"
        raise DataError(f"{root} must contain the category {category}, but got {names}; name one of those")
    if root.is_file():
        if split == "train":
            raise DataError(f"{root} must be a folder of normal images, but got a file; name the folder")
        return ImageDataset([Record(root, -1)], **options)
    if split == "predict":
        _check_not_categories(root, _has_masks)
        folder = _predict_folder(root)
        dataset = ImageFolder(folder, **options)
        paths = map(Path, dataset.paths)
        public = is_public_test(folder)
        images, passed = list_public(folder) if public else without_masks(paths, dataset.passed_over)
        dataset.records, dataset.passed_over = tuple(Record(path, -1) for path in images), tuple(passed)
        if folder in (root / "test", root / "test_public"):
            beside = (path for path in (*subfolders(root), *find_images(root, recursive=False)) if path != folder)
            dataset.passed_over += tuple(PassedOver(path, f"beside {folder.name}/") for path in beside)
        return dataset
    if is_visa(root):
        return VisA(root, split, **options)
    for kind, what, matches in _WITH_CATEGORY:
        if matches(root):
            raise DataError(
                f"{root} must be opened with a category, but got none for the layout of {kind.__name__}; "
                f"name the {what} as category (--category on the command line)"
            )
    if is_btad(root) and (split == "train" or (root / "ground_truth").is_dir()):
        return BTAD(root, split, **options)
    if split == "train":
        normal = ImageFolder(_normal_folder(root), label=0, **options)
        normal.passed_over = tuple(scan(root / "train" if (root / "train").is_dir() else root).passed_over)
        return normal
    if is_mvtec_ad2(root):
        return MVTecAD2(root, "test", **options)
    if is_public_test(root):
        images, passed_over = list_public(root)
        return ImageDataset(public_records(root, images), has_masks=True, root=root, passed_over=passed_over, **options)
    if is_mvtec_loco(root):
        return MVTecLOCO(root, "test", **options)
    has_test = (root / "test").is_dir()
    if has_test and (root / "ground_truth").is_dir():
        return MVTecAD(root, "test", **options)
    if not has_test:
        if (root / "train").is_dir():
            raise DataError(f"{root} must contain test/ beside train/, but got none; add it or name another folder")
        _check_not_categories(root)
    return _labeled_by_folder(root / "test" if has_test else root, "ok" if is_btad(root) else "good", options)


def _predict_folder(root: Path) -> Path:
    """Return the folder of images to predict, without training images and masks beside them."""
    if is_visa(root):
        return root / "Data" / "Images"
    if is_mvtec_ad2(root):
        return root / "test_public"
    has_test = (root / "test").is_dir() and any((root / name).is_dir() for name in ("train", MASKS))
    return root / "test" if has_test else root


def _normal_folder(root: Path) -> Path:
    """Return the folder whose images are all normal; never guess, because training on defects goes unnoticed."""
    if (root / "train").is_dir():
        return _normal_folder(root / "train")
    if (root / "test").is_dir():
        raise DataError(f"{root} must contain train/ beside test/, but got none; add it or name a folder of images")
    _check_not_categories(root)
    list_images(root)  # raises DataError without images
    folders = [folder.name for folder in subfolders(root) if find_images(folder)]
    direct = bool(find_images(root, recursive=False))
    if direct and not folders:
        return root
    if folders == ["good"] and not direct:
        return root / "good"
    found = "both images and folders with images" if direct else "folders with images"
    hint = root / ("good" if "good" in folders else folders[0])
    raise DataError(
        f"{root} must contain normal images directly or only in good/, but got {found} ({', '.join(folders[:5])}); "
        f"name the one folder of normal images, such as {hint}"
    )


def _check_not_categories(root: Path, is_category: Callable[[Path], bool] | None = None) -> None:
    """Raise DataError if a folder contains categories instead of being one."""
    if names := [path.name for path in subfolders(root) if (is_category or _is_category)(path)]:
        raise DataError(f"{root} must be one category, but got the categories {listed(names)}; name {root / names[0]}")


def _is_category(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir() or is_visa(folder)


def _has_masks(folder: Path) -> bool:
    """Return True for a category with masks, which must not be taken for images."""
    return is_visa(folder) or is_mvtec_ad2(folder) or all((folder / name).is_dir() for name in ("test", MASKS))


def _labeled_by_folder(root: Path, normal: str, options: dict[str, Any]) -> ImageDataset:
    """Label images 0 in the normal folder and 1 in the others, or -1 without a normal folder."""
    paths, passed_over = list_images(root)
    if not (root / normal).is_dir():
        return ImageFolder(root, **options)
    for path in paths:
        if path.parent == root:
            raise DataError(f"{path} must be in {normal}/ or in a folder beside it, but got an image outside; move it")
    records = [Record(path, int(path.relative_to(root).parts[0] != normal)) for path in paths]
    return ImageDataset(records, passed_over=passed_over, **options)
