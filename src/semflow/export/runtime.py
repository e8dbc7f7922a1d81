"""Running an exported file on arrays. Imports no torch: a file of ONNX or OpenVINO needs its own runtime and numpy."""

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, DeviceError, ShapeError
from .metadata import KEY, Metadata, read_metadata

__all__ = ["SUFFIXES", "Arrays", "Runner", "need", "open_runner"]

Arrays = dict[str, NDArray[Any]]

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
"""How the files of each format end."""

PACKAGES = {"onnx": "export", "onnxruntime": "export", "onnxscript": "export", "openvino": "openvino"} | dict.fromkeys(
    ("pyarrow", "pyarrow.parquet", "ray", "ray.data"), "ray"
)
"""What is not always installed, and the extra that brings it."""


class Runner(Protocol):
    """An exported file, opened: `runner(images)` gives the results by name.

    Images are (B, 3, S, S) arrays of the type and size that `metadata` names, with RGB channels.
    """

    metadata: Metadata

    def __call__(self, images: NDArray[Any]) -> Arrays:
        """The results, an array each."""
        ...


def open_runner(path: str | Path, device: str = "cpu", threads: int | None = None) -> Runner:
    """Open an exported file with the runtime that its ending names.

    Args:
        path: a file ending in `.pt2`, `.onnx` or `.xml` (with its `.bin` beside it).
        device: `cpu`, `cuda`, or `auto`: CUDA where the runtime offers it. OpenVINO runs on the CPU.
        threads: of the runtime, for ONNX Runtime and OpenVINO; None leaves the choice to it.

    Raises:
        CheckpointError: there is no such file, it is broken, or it was not made by this version's `semflow export`.
        ConfigError: the runtime is not installed.
        DeviceError: the runtime has no such device.

    Example:
        >>> import tempfile
        >>> from semflow.export import save
        >>> from semflow.recipes import cflow_ad
        >>> detector = cflow_ad("test_efficientnet", "random", (8,), 32, blocks=1, position_channels=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runner = open_runner(save(detector, f"{folder}/parts.pt2", check=False).path)
        >>> runner(np.zeros((2, 3, 32, 32), np.uint8))["score"].shape
        (2,)
    """
    path = Path(path)
    openers: dict[str, Callable[[Path, str, int | None], Runner]] = {
        ".pt2": _TorchRunner,
        ".onnx": _OnnxRunner,
        ".xml": _OpenVinoRunner,
    }
    if path.suffix not in openers:
        raise CheckpointError(f"{path}: expected an exported model ending in {', '.join(openers)}, or a run directory")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected an exported model, but there is none; make one with semflow export")
    return openers[path.suffix](path, device, threads)


def need(package: str) -> ModuleType:
    """Import a package of an extra.

    Raises:
        ConfigError: it is not installed; the message says how to get it.

    Example:
        >>> PACKAGES["surely_missing"] = "export"
        >>> need("surely_missing")
        Traceback (most recent call last):
        ...
        semflow.errors.ConfigError: surely_missing is not installed; get it with: pip install 'semflow[export]'
        >>> del PACKAGES["surely_missing"]
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and something that it needs is not
            raise ConfigError(f"{package} cannot be imported ({error}); install it again") from error
        raise ConfigError(
            f"{package} is not installed; get it with: pip install 'semflow[{PACKAGES[package]}]'"
        ) from None


def _broken(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return CheckpointError(f"{path}: broken or no exported model ({reason}); export the model again")


def _checked(images: NDArray[Any], metadata: Metadata) -> NDArray[Any]:
    side, dtype = metadata.image_size, np.dtype(metadata.input)
    if images.ndim != 4 or images.shape[1:] != (3, side, side) or images.dtype != dtype or not len(images):
        raise ShapeError(
            f"images must be {dtype} (B, 3, {side}, {side}), B at least 1, but got {images.dtype} {tuple(images.shape)}"
        )
    return np.ascontiguousarray(images)


class _OnnxRunner:
    """ONNX Runtime."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        runtime = need("onnxruntime")
        offered = runtime.get_available_providers()
        if device == "cuda" and "CUDAExecutionProvider" not in offered:
            raise DeviceError(f"device cuda is not offered by onnxruntime ({', '.join(offered)}); use cpu")
        wanted = ("CPUExecutionProvider",) if device == "cpu" else ("CUDAExecutionProvider", "CPUExecutionProvider")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about its own optimiser
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=[name for name in wanted if name in offered]
            )
        except Exception as error:  # onnxruntime has a class for each of its status codes, without a common parent
            raise _broken(path, error) from error
        self.metadata = read_metadata(self._session.get_modelmeta().custom_metadata_map.get(KEY), path)

    def __call__(self, images: NDArray[Any]) -> Arrays:
        names = list(self.metadata.outputs)
        return dict(zip(names, self._session.run(names, {"images": _checked(images, self.metadata)}), strict=True))


class _OpenVinoRunner:
    """OpenVINO on the CPU, told to compute in float32: by default it takes bfloat16 where the CPU is faster with it."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        openvino = need("openvino")
        if device == "cuda":
            raise DeviceError("device cuda is not offered by OpenVINO; use cpu")
        if not path.with_suffix(".bin").is_file():
            raise CheckpointError(f"{path}: expected {path.stem}.bin beside it, with the weights, but there is none")
        core = openvino.Core()
        settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(path))
            text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
            self.metadata = read_metadata(text, path)
            self._compiled = core.compile_model(model, "CPU", settings)
        except CheckpointError:
            raise
        except Exception as error:  # RuntimeError for all, and what its parser stumbles on
            raise _broken(path, error) from error

    def __call__(self, images: NDArray[Any]) -> Arrays:
        results = self._compiled([_checked(images, self.metadata)])
        return {name: _typed(name, np.array(results[name])) for name in self.metadata.outputs}


def _typed(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """OpenVINO has bytes for truth values."""
    return values.astype(np.bool_) if name in ("is_anomalous", "mask") else values


class _TorchRunner:
    """torch.export's archive, run by torch."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        text = _refuse_code(path)
        self.metadata = read_metadata(text, path)
        torch = import_module("torch")
        from ..detectors.loading import check_device

        chosen = check_device(device)
        try:
            program = torch.export.load(path)
        except Exception as error:  # a reader of zip files, of JSON, and of torch's own schema
            raise _broken(path, error) from error
        if chosen.type != "cpu":
            program = import_module("torch.export.passes").move_to_device_pass(program, chosen)
        self._torch, self._device, self._module = torch, chosen, program.module()

    def __call__(self, images: NDArray[Any]) -> Arrays:
        given = self._torch.from_numpy(_checked(images, self.metadata)).to(self._device)
        with self._torch.no_grad():
            results = self._module(given)
        return {name: x.cpu().numpy() for name, x in zip(self.metadata.outputs, results, strict=True)}


def _refuse_code(path: Path) -> str | None:
    """The metadata of a `.pt2` archive that holds tensors and a graph as data and nothing else.

    torch.export.load unpickles what an archive gives it as pickled, and loads compiled libraries: semflow writes
    neither, so whatever holds them is not ours, and is not opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            inner = [name.partition("/")[2] for name in names]
            text = None
            for name, part in zip(names, inner, strict=True):
                if part == f"extra/{KEY}.json":
                    text = archive.read(name).decode("utf-8")
                elif part.startswith("extra/"):
                    continue
                elif part.startswith("data/sample_inputs/") and archive.getinfo(name).file_size:
                    raise CheckpointError(f"{path}: holds pickled inputs, which semflow does not open; export it again")
                elif part.endswith("_config.json") and part.startswith("data/"):
                    _refuse_pickled(json.loads(archive.read(name)), path)
            doubled = [name for name, count in Counter(names).items() if count > 1]
            strange = [part for part in inner if not _is_data(part)]
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error) from error
    if doubled or strange:
        first = [*doubled, *strange][0]
        raise CheckpointError(f"{path}: holds {first}, which semflow neither writes nor opens; export the model again")
    return text


def _refuse_pickled(config: Any, path: Path) -> None:
    for entry in config["config"].values():
        if entry["use_pickle"] or not str(entry["path_name"]).startswith(("weight_", "tensor_")):
            raise CheckpointError(f"{path}: holds pickled tensors, which semflow does not open; export it again")


def _is_data(part: str) -> bool:
    folders = ("data/weights/", "data/constants/", "data/sample_inputs/", "models/", "extra/", ".data/")
    legacy = part.startswith(("data/weights/", "data/constants/")) and part.endswith(".pt")
    return part in ("archive_format", "archive_version", "version", "byteorder") or (
        part.startswith(folders) and not legacy
    )
