"""Archives of torch.export, checked before torch opens them. Imports torch only to open one."""

import json
import logging
import re
import zipfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from semflow.errors import CheckpointError

from .metadata import KEY

TEXT, LARGEST_TEXT = f"extra/{KEY}.json", 2**26
RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/.*|\.data/.*"
    r"|archive_format|archive_version|version|byteorder"
)


def read_text(path: Path) -> str | None:
    """Check that an archive contains only tensors and a graph, and return its metadata.

    torch.export.load unpickles records and loads compiled libraries if an archive contains them. semflow writes
    neither, so this function rejects such archives. A crafted zip file can look different to Python's reader and to
    torch's (names that differ in case, two directories), and torch opens it with either, depending on its version: both
    readers must find the same records, and the same content in those that decide what is unpickled.
    """
    try:
        reader = import_module("torch")._C.PyTorchFileReader(str(path))
        with zipfile.ZipFile(path) as archive:
            records = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
            _check_records(archive.infolist(), path)
            if sorted(reader.get_all_records()) != sorted(records):
                raise _refused(path, "the same records for all zip readers", "others")

            def read(name: str) -> bytes:
                if max(records[name].file_size, reader.get_record_size(name)) > LARGEST_TEXT:
                    raise _refused(path, f"at most {LARGEST_TEXT} bytes in {name}", "more")
                content: bytes = reader.get_record(name)
                if archive.read(records[name]) != content:
                    raise _refused(path, f"one {name} for all zip readers", "two")
                return content

            for name in records:
                if name.startswith("data/sample_inputs/") and read(name):
                    raise _refused(path, "no pickled data", "pickled inputs")
                if name.startswith("data/") and name.endswith("_config.json"):
                    for entry in json.loads(read(name))["config"].values():
                        if entry["use_pickle"] or not str(entry["path_name"]).startswith(("weight_", "tensor_")):
                            raise _refused(path, "no pickled data", "pickled tensors")
            if (damaged := archive.testzip()) is not None:
                raise _refused(path, "its checksums", f"another for {damaged}")
            return read(TEXT).decode("utf-8") if TEXT in records else None
    except CheckpointError:
        raise
    except Exception as error:  # two zip readers and JSON of unknown content raise many types
        raise unreadable(path, error) from error


def open_program(path: Path) -> Any:
    """Load the program of an archive that `read_text` has checked."""
    logger = logging.getLogger("torch.export")  # logs a traceback before it tries older formats
    before, logger.disabled = logger.disabled, True
    try:
        return import_module("torch.export").load(path)
    except Exception as error:  # zip, JSON and torch's schema raise many types
        raise unreadable(path, error) from error
    finally:
        logger.disabled = before


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the error of a file that a runtime cannot read."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return CheckpointError(f"{path} must be an exported model, but got {reason}; export the model again")


def _check_records(infos: list[zipfile.ZipInfo], path: Path) -> None:
    names = [info.filename.partition("/")[2] for info in infos]
    counts = Counter(map(str.casefold, names))  # torch ignores the case of names
    for info, name in zip(infos, names, strict=True):
        if info.compress_type != zipfile.ZIP_STORED:  # torch does not compress, and a zip bomb does
            raise _refused(path, "no compressed records", info.filename)
        if counts[name.casefold()] > 1 or not RECORDS.fullmatch(name):
            raise _refused(path, "only records that semflow writes", info.filename)
    if len({info.filename.partition("/")[0] for info in infos}) > 1:
        raise _refused(path, "one folder", "more")


def _refused(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{path} must have {expected}, but got {found}; export the model again")
