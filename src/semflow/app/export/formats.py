"""Writing of a traced detector in each format."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from semflow._optional import import_optional
from semflow.errors import ConfigError

from .digest import append_digest
from .metadata import KEY, Metadata
from .runtime import Format

OPSET = 20
"""Version of ONNX operators: the first with the GridSample and AffineGrid that rotations need."""

LARGEST = 2**31 - 2**20
"""Most bytes of weights in an ONNX file, which is one protobuf message; the graph needs the rest."""

PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def packages_of(format: Format) -> tuple[str, ...]:
    """Return the packages that a format needs besides torch. Raise ConfigError if one is not installed."""
    for package in PACKAGES[format]:
        import_optional(package)
    return PACKAGES[format]


def write(program: ExportedProgram, path: Path, metadata: Metadata, format: Format) -> None:
    """Write a program to a file, and for OpenVINO to the `.bin` beside it."""
    with _quiet():
        if format == "torch":
            buffer = io.BytesIO()  # torch's own file writer aborts the process if the disk is full
            torch.export.save(program, buffer, extra_files={f"{KEY}.json": metadata.to_json()})
            path.write_bytes(buffer.getbuffer())
            return
        if format == "onnx":
            path.write_bytes(_onnx(program, metadata))
        else:
            _write_openvino(program, path, metadata)
        append_digest(path)


def _onnx(program: ExportedProgram, metadata: Metadata) -> bytes:
    size = sum(x.numel() * x.element_size() for x in program.state_dict.values())
    if size > LARGEST:
        raise ConfigError(
            f"weights must have at most {LARGEST} bytes for format onnx, but got {size}; use torch or openvino"
        )
    names: dict[str, Any] = {"input_names": ["images"], "output_names": list(metadata.outputs)}
    made: Any = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)
    proto = made.model_proto
    del proto.graph.value_info[:]  # intermediate shapes with symbols of torch
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        del node.metadata_props[:]  # paths of this machine
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, metadata.to_json()
    data: bytes = proto.SerializeToString()
    return data


def _write_openvino(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    openvino = import_optional("openvino")
    # As openvino.convert_model, but without its telemetry.
    frontend = import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    kind = import_module("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    decoder = kind.from_exported_program(program)  # the frontend keeps no reference to it
    model = frontend.convert(frontend.load(decoder))
    model.inputs[0].get_tensor().set_names({"images"})
    model.reshape([-1, *metadata.shape])  # the frontend drops all sizes
    for output, name in zip(model.outputs, metadata.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(metadata.to_json(), [KEY])
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)  # half precision would change scores
    except RuntimeError as error:  # also for a full disk
        raise OSError(f"OpenVINO must write {path.name}, but got {' '.join(str(error).split())[:80]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters on standard output, in warnings and in logs."""
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(silenced)
