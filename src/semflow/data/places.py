"""Where the folders of a data set should lie, and what to say when they do not."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from semflow.errors import ConfigError, DataError

from .files import subfolders

__all__ = ["category_folder", "check_split", "listed", "require_folder"]

_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")


def check_split(name: str, split: str) -> None:
    """Raise ConfigError unless a split is "train" or "test"; `name` is the data set's."""
    if split not in ("train", "test"):
        raise ConfigError(f"{name}: expected split to be 'train' or 'test', but got {split!r}.")


def require_folder(folder: Path, what: str, todo: str = "check the path") -> Path:
    """The folder itself if it is one; otherwise an error that tells a packed archive from a wrong path.

    Raises:
        DataError: there is no such folder; `what` says what was expected and `todo` what to do.
    """
    if folder.is_dir():
        return folder
    if folder.is_file():
        if folder.name.lower().endswith(_ARCHIVES):
            came, todo = "it is an archive, still packed", "unpack it and name the folder"
        else:
            came, todo = "it is a file", "name the folder that holds it"
    else:
        place = next((parent for parent in folder.parents[:2] if parent.is_dir()), None)
        packed = _archives(place) if place else []
        came = "there is none"
        if packed:
            came = f"there is none, and {packed[0].name} in {place} is still packed"
            todo = "unpack it there if it holds this data set"
    raise DataError(f"{folder}: expected {what}, but {came}; {todo}.")


def category_folder(
    root: str | PathLike[str], category: str | None, name: str, is_category: Callable[[Path], bool], layout: str
) -> Path:
    """The folder of a category: `root / category`, or `root` itself if no category is named.

    Args:
        root: the folder of a category, or of all categories.
        category: a folder in `root`.
        name: the data set's.
        is_category: whether a folder looks like a category.
        layout: the folders by which a category is known, for the error.

    Raises:
        DataError: there is no such category, `root` holds several where one is expected, or it has another layout.
    """
    top = require_folder(Path(root), f"the folder of {name}")
    folder = top / category if category else top
    if is_category(folder):
        return folder
    others = [path.name for path in subfolders(top) if is_category(path)]
    if others and not category:
        raise DataError(f"{top}: expected one category, but it holds {listed(others)}; name one, as {top / others[0]}.")
    if others and not folder.exists():
        raise DataError(
            f"{folder}: expected the category {category}, but {top} holds only {listed(others)}; "
            "unpack the data set completely, or name one of these."
        )
    require_folder(folder, f"a category of {name}")
    packed = _archives(folder)
    if packed:
        raise DataError(
            f"{folder}: expected {layout}, but {packed[0].name} is still packed; unpack it there if it holds them."
        )
    raise DataError(f"{folder}: expected {layout}, as {name} has it, but there is none; check the path.")


def listed(names: list[str], most: int = 5) -> str:
    """Names for an error, the first few of many."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(_ARCHIVES) and path.is_file())
