"""Runners of exported files on arrays. Imports no torch: ONNX and OpenVINO files need only their runtime and numpy."""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from semflow._channels import in_color
from semflow._optional import import_optional
from semflow._tiling import Tiles
from semflow.errors import CheckpointError, ConfigError, DeviceError, ShapeError

from .archive import open_program, read_text, unreadable
from .digest import check_digest
from .metadata import KEY, Metadata, read_metadata

Arrays = dict[str, NDArray[Any]]
Format = Literal["torch", "onnx", "openvino"]

SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
"""Ending of the files of each format."""


class Runner(Protocol):
    """Opened exported file."""

    metadata: Metadata

    def __call__(self, images: NDArray[Any]) -> Arrays:
        """Compute the results by name, for images (B, C, H, W) of the type and size in `metadata`, or gray ones."""
        ...


def open_runner(path: str | Path, device: str = "cpu", threads: int | None = None) -> Runner:
    """Open an exported file with the runtime of its format.

    Args:
        path: File ending in `.pt2`, `.onnx` or `.xml` (with its `.bin` beside it).
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA if the runtime offers it. OpenVINO runs on the CPU.
        threads: Number of threads of ONNX Runtime or OpenVINO; by default, the runtime decides.

    Example:
        >>> import tempfile
        >>> from semflow.app.export import save
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runner = open_runner(save(detector, f"{folder}/parts.pt2", check=False).path)
        >>> runner(np.zeros((2, 3, 32, 32), np.uint8))["score"].shape
        (2,)
    """
    path = Path(path)
    classes: tuple[Callable[[Path, str, int | None], Runner], ...] = (_TorchRunner, _OnnxRunner, _OpenVinoRunner)
    runners = dict(zip(SUFFIXES.values(), classes, strict=True))
    if path.suffix not in runners:
        raise CheckpointError(
            f"{path} must be a run directory or an exported model ending in {', '.join(runners)}, "
            f"but got {path.suffix or 'no ending'}"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} must be an exported model, but got no file; create one with semflow export")
    return runners[path.suffix](path, device, threads)


def run_image(
    runner: Runner, image: NDArray[Any], convert: Callable[[NDArray[Any]], NDArray[Any]] | None = None
) -> Arrays:
    """Compute the results for one image (C, H, W) of any size by those of its tiles, as `Detector.predict` does.

    Args:
        runner: Opened file of a detector that was fitted with tiles.
        image: Image of the runner's input type.
        convert: Converts a batch of tiles to the runner's input type, for images of other types.

    Example:
        >>> from dataclasses import replace
        >>> metadata = Metadata("sanflow", {}, 32, "uint8", (0.0, 3.0), True, ("score", "anomaly_map"))
        >>> class Brightness:
        ...     metadata = replace(metadata, tiles={"size": 32, "overlap": 4})
        ...     def __call__(self, images):
        ...         return {"score": images.max((1, 2, 3)), "anomaly_map": images.mean(1)}
        >>> {name: x.shape for name, x in run_image(Brightness(), np.ones((3, 50, 80), np.uint8)).items()}
        {'score': (), 'anomaly_map': (50, 80)}
    """
    about = runner.metadata
    if not about.tiles:
        raise ConfigError("runner must be of a detector that was fitted with tiles, but got one without; run it itself")
    if image.ndim != 3 or 0 in image.shape:
        raise ShapeError(f"image must be (C, H, W), but got {tuple(image.shape)}")
    decisions: dict[str, list[NDArray[Any]]] = {"p_value": [], "is_anomalous": []}

    def predict(batch: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        results = runner(batch if convert is None else convert(batch))
        for name, parts in decisions.items():
            if name in results:
                parts.append(results[name])
        return results["score"], results["anomaly_map"]

    score, anomaly_map = Tiles(**about.tiles).predict(image, predict)
    found: Arrays = {"score": score, "anomaly_map": anomaly_map}
    if about.calibration:  # of the tile with the highest score, which has the lowest p-value
        found["p_value"] = np.concatenate(decisions["p_value"]).min()
        found["is_anomalous"] = np.concatenate(decisions["is_anomalous"]).max()
        found["mask"] = ~(anomaly_map <= np.float32(about.calibration["map_threshold"]))
    return found


class _FileRunner:
    """Runner that is pickled with the content of its files, so that it can be sent to processes of other machines."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        files = [path, path.with_suffix(".bin")] if path.suffix == SUFFIXES["openvino"] else [path]
        self.threads = threads
        self._arguments, self._stamps = (path, device, threads), {file: _stamp(file) for file in files}
        self._folder: Any = None  # of an unpickled runner

    def __reduce__(self) -> tuple[Any, ...]:
        path, device, threads = self._arguments
        for file, stamp in self._stamps.items():
            if _stamp(file) != stamp:
                raise CheckpointError(
                    f"{file} must be the file that was opened, to be pickled, but got another or none; open it again"
                )
        contents = {file.name: file.read_bytes() for file in self._stamps}
        return _reopened, (type(self), path.name, contents, device, threads)


def _stamp(file: Path) -> tuple[int, int] | None:
    return (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None


def _reopened(
    kind: type[_FileRunner], name: str, contents: dict[str, bytes], device: str, threads: int | None
) -> _FileRunner:
    folder = TemporaryDirectory(prefix="semflow-", ignore_cleanup_errors=True)
    for file, content in contents.items():
        (Path(folder.name) / file).write_bytes(content)
    runner = kind(Path(folder.name) / name, device, threads)
    runner._folder = folder  # lives as long as the runner, which may be pickled again
    return runner


class _OnnxRunner(_FileRunner):
    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        super().__init__(path, device, threads)
        runtime = import_optional("onnxruntime")
        offered = runtime.get_available_providers()
        kind, _, number = device.partition(":")
        if kind not in ("auto", "cpu") and (kind != "cuda" or "CUDAExecutionProvider" not in offered):
            raise DeviceError(
                f"device must be offered by onnxruntime ({', '.join(offered)}), but got {device}; use cpu"
            )
        wanted = ("CPUExecutionProvider",) if device == "cpu" else ("CUDAExecutionProvider", "CPUExecutionProvider")
        check_digest(path)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # no warnings about its optimizer
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            providers: list[Any] = [name for name in wanted if name in offered]
            if number:
                providers[0] = (providers[0], {"device_id": number})
            self._session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime has one class per status code, without a common parent
            raise unreadable(path, error) from error
        self.metadata = read_metadata(self._session.get_modelmeta().custom_metadata_map.get(KEY), path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        types = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
        shapes = [(types.get(x.type, x.type), *x.shape[1:]) for x in inputs]
        _check_graph(self.metadata, shapes, [x.name for x in outputs], path)
        self._input = inputs[0].name

    def __call__(self, images: NDArray[Any]) -> Arrays:
        names = list(self.metadata.outputs)
        return dict(zip(names, self._session.run(names, {self._input: _checked(images, self.metadata)}), strict=True))


class _OpenVinoRunner(_FileRunner):
    """OpenVINO on the CPU in float32, unless the file asks for bfloat16, which is OpenVINO's own default.

    The graph of one image is compiled with its shape, which is up to a third faster, that of batches when one comes.
    """

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        super().__init__(path, device, threads)
        openvino = import_optional("openvino")
        if device not in ("auto", "cpu"):
            raise DeviceError(f"device must be cpu for OpenVINO, but got {device}; use cpu")
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise CheckpointError(f"{weights} must have the weights of {path.name}, but got no file; copy it too")
        check_digest(path)
        core = openvino.Core()
        settings: dict[str, object] = {}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(path))
            text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
            self.metadata = read_metadata(text, path)
            settings["INFERENCE_PRECISION_HINT"] = "bf16" if self.metadata.precision == "bf16" else "f32"
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # or it rounds what is multiplied by 8-bit weights
            outputs = [next(iter(sorted(x.get_names())), "") for x in model.outputs]
            _check_graph(self.metadata, [_openvino_shape(x) for x in model.inputs], outputs, path)
            one = model.clone()
            one.reshape([1, *list(model.inputs[0].get_partial_shape())[1:]])
            self._one = core.compile_model(one, "CPU", settings)
            if self.metadata.precision == "bf16" and self._computes() != "bf16":
                warnings.warn(f"{path} is computed in float32 on this CPU, which has no bfloat16", stacklevel=2)
            self._many: Any = None
            self._compile: Callable[[], Any] = lambda: core.compile_model(model, "CPU", settings)
            self.threads = int(self._one.get_property("INFERENCE_NUM_THREADS"))
        except CheckpointError:
            raise
        except Exception as error:  # RuntimeError, and errors of its parser
            raise unreadable(path, error) from error

    def _computes(self) -> str:
        return str(self._one.get_property("INFERENCE_PRECISION_HINT").to_string())

    def __call__(self, images: NDArray[Any]) -> Arrays:
        given = _checked(images, self.metadata)
        if len(given) != 1 and self._many is None:
            try:
                self._many = self._compile()
            except Exception as error:
                raise unreadable(self._arguments[0], error) from error
        compiled = self._one if len(given) == 1 else self._many
        request = compiled.create_infer_request()  # one per call, since threads cannot share it
        results = request.infer([given])
        found = {name: np.array(results[name]) for name in self.metadata.outputs}
        return {name: x.astype(np.bool_) if name in ("is_anomalous", "mask") else x for name, x in found.items()}


class _TorchRunner(_FileRunner):
    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        super().__init__(path, device, threads)
        self.metadata = read_metadata(read_text(path), path)
        torch = import_module("torch")
        from semflow.training.loading import check_device

        chosen = check_device(device)
        program = open_program(path)
        try:
            signature = program.graph_signature
            values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
            inputs = [values[name] for name in signature.user_inputs]
            shapes = [(str(x.dtype).removeprefix("torch."), *map(int, x.shape[1:])) for x in inputs]
        except Exception as error:  # a forged graph may lack anything
            raise unreadable(path, error) from error
        count = len(signature.user_outputs)  # without names
        names = [*self.metadata.outputs[:count], *["another"] * (count - len(self.metadata.outputs))]
        _check_graph(self.metadata, shapes, names, path)
        if chosen.type != "cpu":
            program = import_module("torch.export.passes").move_to_device_pass(program, chosen)
        self._torch, self._device, self._module = torch, chosen, program.module()
        self.threads = torch.get_num_threads()

    def __call__(self, images: NDArray[Any]) -> Arrays:
        given = self._torch.from_numpy(_checked(images, self.metadata)).to(self._device)
        with self._torch.no_grad():
            results = self._module(given)
        return {name: x.cpu().numpy() for name, x in zip(self.metadata.outputs, results, strict=True)}


def _openvino_shape(given: Any) -> tuple[object, ...]:
    """Return type and shape of an input, with -1 for free sizes."""
    dtype, shape = given.get_element_type().get_type_name(), given.get_partial_shape()
    if shape.rank.is_dynamic:
        return (dtype,)
    sizes = (x.get_length() if x.is_static else -1 for x in list(shape)[1:])
    return ({"u8": "uint8", "f32": "float32"}.get(dtype, dtype), *sizes)


def _check_graph(metadata: Metadata, inputs: Sequence[tuple[object, ...]], outputs: Sequence[str], path: Path) -> None:
    """Compare a graph with its metadata. An input is a type with the sizes after the batch; -1 stands for any size."""
    expected = (metadata.input, *metadata.shape)
    sizes = inputs[0] if len(inputs) == 1 else ()
    fits = len(sizes) == 4 and all(size in (-1, own) for size, own in zip(sizes, expected, strict=True))
    if not fits or list(outputs) != list(metadata.outputs):
        found = f"inputs {', '.join(map(str, inputs))} and results {', '.join(outputs)}"[:200]
        raise CheckpointError(
            f"{path} must have the graph of its metadata with input {expected} and results "
            f"{', '.join(metadata.outputs)}, but got {found}; export the model again"
        )


def _checked(images: NDArray[Any], metadata: Metadata) -> NDArray[Any]:
    shape, dtype = metadata.shape, np.dtype(metadata.input)
    images = in_color(images) if images.ndim == 4 else images
    if images.ndim != 4 or images.shape[1:] != shape or images.dtype != dtype or not len(images):
        expected = f"{dtype} (B, {', '.join(map(str, shape))}) with B >= 1"
        raise ShapeError(f"images must be {expected}, but got {images.dtype} {tuple(images.shape)}")
    return np.ascontiguousarray(images)
