"""Running an exported file on arrays. Imports no torch: a file of ONNX or OpenVINO needs its own runtime and numpy."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from semflow.errors import CheckpointError, ConfigError, DeviceError, ShapeError

from .archive import broken, open_program, read_text
from .metadata import KEY, Metadata, read_metadata
from .seal import check_seal

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
        CheckpointError: there is no such file, it is broken or damaged, or it was not made by this version's `semflow
            export`.
        ConfigError: the runtime is not installed.
        DeviceError: the runtime has no such device.

    Example:
        >>> import tempfile
        >>> from semflow.app.export import save
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
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


def _agree(metadata: Metadata, takes: tuple[object, ...], gives: Sequence[object], path: Path) -> None:
    """Raise CheckpointError where a graph is not what its metadata say: the type and shape of an image, the results."""
    side = metadata.image_size
    expected = (metadata.input, 3, side, side)
    takes = tuple(own if free == -1 else free for own, free in zip(expected, takes, strict=False)) + takes[4:]
    if takes != expected or list(gives) != list(metadata.outputs):
        raise CheckpointError(
            f"{path}: broken, expected a graph of {_told(expected, metadata.outputs)}, as its entry says, but it is of "
            f"{_told(takes, gives)}; export the model again"
        )


def _told(takes: tuple[object, ...], gives: Sequence[object]) -> str:
    return f"{takes[0]} images {takes[1:]} to {', '.join(map(str, gives))}"[:200]


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
        check_seal(path)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about its own optimiser
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=[name for name in wanted if name in offered]
            )
        except Exception as error:  # onnxruntime has a class for each of its status codes, without a common parent
            raise broken(path, error) from error
        self.metadata = read_metadata(self._session.get_modelmeta().custom_metadata_map.get(KEY), path)
        given, results = self._session.get_inputs(), self._session.get_outputs()
        kinds = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
        takes = (kinds.get(given[0].type, given[0].type), *given[0].shape[1:]) if len(given) == 1 else (len(given),)
        self._input = given[0].name if given else ""
        _agree(self.metadata, takes, [x.name for x in results], path)

    def __call__(self, images: NDArray[Any]) -> Arrays:
        names = list(self.metadata.outputs)
        return dict(zip(names, self._session.run(names, {self._input: _checked(images, self.metadata)}), strict=True))


class _OpenVinoRunner:
    """OpenVINO on the CPU, told to compute in float32: by default it takes bfloat16 where the CPU is faster with it."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        openvino = need("openvino")
        if device == "cuda":
            raise DeviceError("device cuda is not offered by OpenVINO; use cpu")
        if not path.with_suffix(".bin").is_file():
            raise CheckpointError(f"{path}: expected {path.stem}.bin beside it, with the weights, but there is none")
        check_seal(path)
        core = openvino.Core()
        settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(path))
            text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
            self.metadata = read_metadata(text, path)
            _agree(self.metadata, *_openvino_ends(model), path)
            self._compiled = core.compile_model(model, "CPU", settings)
        except CheckpointError:
            raise
        except Exception as error:  # RuntimeError for all, and what its parser stumbles on
            raise broken(path, error) from error

    def __call__(self, images: NDArray[Any]) -> Arrays:
        results = self._compiled([_checked(images, self.metadata)])
        return {name: _typed(name, np.array(results[name])) for name in self.metadata.outputs}


def _openvino_ends(model: Any) -> tuple[tuple[object, ...], Sequence[object]]:
    """What a graph of OpenVINO takes and gives."""
    given = model.inputs
    gives = [next(iter(sorted(x.get_names())), "") for x in model.outputs]
    if len(given) != 1 or given[0].get_partial_shape().rank.get_max_length() != 4:
        return (len(given),), gives
    kind = given[0].get_element_type().get_type_name()
    sides = [x.get_length() if x.is_static else -1 for x in list(given[0].get_partial_shape())[1:]]
    return ({"u8": "uint8", "f32": "float32"}.get(kind, kind), *sides), gives


def _torch_ends(program: Any, names: Sequence[str]) -> tuple[tuple[object, ...], Sequence[object]]:
    """What a graph of torch takes, and its results by the names that they are to have, as they have none."""
    signature = program.graph_signature
    gives = [*names, *["another"] * len(signature.user_outputs)][: len(signature.user_outputs)]
    placeholders = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    given = [placeholders[name] for name in signature.user_inputs]
    if len(given) != 1 or given[0] is None:
        return (len(given),), gives
    return (str(given[0].dtype).removeprefix("torch."), *map(int, given[0].shape[1:])), gives


def _typed(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """OpenVINO has bytes for truth values."""
    return values.astype(np.bool_) if name in ("is_anomalous", "mask") else values


class _TorchRunner:
    """torch.export's archive, run by torch."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        self.metadata = read_metadata(read_text(path), path)
        torch = import_module("torch")
        from semflow.training.loading import check_device

        chosen = check_device(device)
        program = open_program(path)
        try:
            ends = _torch_ends(program, self.metadata.outputs)
        except Exception as error:  # a graph may lack whatever a graph has
            raise broken(path, error) from error
        _agree(self.metadata, *ends, path)
        if chosen.type != "cpu":
            program = import_module("torch.export.passes").move_to_device_pass(program, chosen)
        self._torch, self._device, self._module = torch, chosen, program.module()

    def __call__(self, images: NDArray[Any]) -> Arrays:
        given = self._torch.from_numpy(_checked(images, self.metadata)).to(self._device)
        with self._torch.no_grad():
            results = self._module(given)
        return {name: x.cpu().numpy() for name, x in zip(self.metadata.outputs, results, strict=True)}
