"""Archives of torch.export: looked at before torch opens them. Imports torch only when there is one to open."""

import json
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from semflow.errors import CheckpointError

from .metadata import KEY

__all__ = ["broken", "open_program", "read_text"]

LARGEST_TEXT = 2**26
_TEXT = f"extra/{KEY}.json"
_DATA = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/.*|\.data/.*"
    r"|archive_format|archive_version|version|byteorder"
)


class _View(NamedTuple):
    """An archive as one reader sees it: its records, without the folder that all of them lie in."""

    names: list[str]
    size: Callable[[str], int]
    read: Callable[[str], bytes]


def read_text(path: Path) -> str | None:
    """The metadata of an archive that holds tensors and a graph as data, whole, and nothing else.

    torch.export.load unpickles what an archive gives it as pickled, and loads compiled libraries: semflow writes
    neither, so whatever holds them is not ours, and is not opened. Two readers may find different records in one file:
    torch's takes names for equal that differ in case, and another directory than Python's where there are two. It is
    torch that opens the file, by its own reader and for the format of torch 2.7 by Python's: both must see the same.

    Raises:
        CheckpointError: it holds something else, or is broken.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            ours = _by_python(archive, path)
            _check(ours, path)
            theirs = _by_torch(path)
            _check(theirs, path)
            if sorted(ours.names) != sorted(theirs.names):
                raise CheckpointError(f"{path}: holds other records for one reader than for another; export it again")
            damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path}: broken, {damaged} has changed since it was written; export it again")
            return _text(theirs, _TEXT, path).decode("utf-8") if _TEXT in theirs.names else None
    except CheckpointError:
        raise
    except Exception as error:  # of two readers of zip files, of JSON, and of what is not what it should be
        raise broken(path, error) from error


def open_program(path: Path) -> Any:
    """The program of an archive that `read_text` has found to be data."""
    try:
        with _silent("torch.export"):
            return import_module("torch.export").load(path)
    except Exception as error:  # a reader of zip files, of JSON, and of torch's own schema
        raise broken(path, error) from error


def broken(path: Path, error: Exception) -> CheckpointError:
    """What to say of a file that a runtime cannot read."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return CheckpointError(f"{path}: broken or no exported model ({reason}); export the model again")


def _by_python(archive: zipfile.ZipFile, path: Path) -> _View:
    infos, full = archive.infolist(), {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing, and a bomb does
            raise CheckpointError(f"{path}: holds {info.filename}, compressed, which semflow never writes")
        full[info.filename.partition("/")[2]] = info
    names = [info.filename.partition("/")[2] for info in infos]
    if len({info.filename.partition("/")[0] for info in infos}) > 1:
        raise CheckpointError(f"{path}: holds more than one folder, expected that of a model; export it again")
    return _View(names, lambda name: full[name].file_size, lambda name: archive.read(full[name]))


def _by_torch(path: Path) -> _View:
    reader = import_module("torch")._C.PyTorchFileReader(str(path))
    return _View(list(reader.get_all_records()), reader.get_record_size, reader.get_record)


def _check(view: _View, path: Path) -> None:
    counted = Counter(name.casefold() for name in view.names)
    for name in view.names:
        if counted[name.casefold()] > 1 or not _DATA.fullmatch(name):
            raise CheckpointError(
                f"{path}: holds {name or 'a file beside its folder'}, which semflow neither writes nor opens; "
                "export the model again"
            )
        if name.startswith("data/sample_inputs/") and view.size(name):
            raise CheckpointError(f"{path}: holds pickled inputs, which semflow does not open; export it again")
        if name.endswith("_config.json") and name.startswith("data/"):
            _refuse_pickled(json.loads(_text(view, name, path)), path)


def _text(view: _View, name: str, path: Path) -> bytes:
    if view.size(name) > LARGEST_TEXT:
        raise CheckpointError(f"{path}: broken, {name} of {view.size(name)} bytes is too large; export it again")
    return view.read(name)


def _refuse_pickled(config: Any, path: Path) -> None:
    for entry in config["config"].values():
        if entry["use_pickle"] or not str(entry["path_name"]).startswith(("weight_", "tensor_")):
            raise CheckpointError(f"{path}: holds pickled tensors, which semflow does not open; export it again")


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """torch logs a traceback before it tries the next format; what is wrong is said in one line."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
