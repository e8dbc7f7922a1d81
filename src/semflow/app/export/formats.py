"""Writing a traced detector in each format, metadata inside."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch
from torch.export import ExportedProgram

from semflow._optional import import_optional
from semflow.errors import ConfigError

from .metadata import KEY, Metadata
from .seal import seal

__all__ = ["OPSET", "Format", "packages_of", "write"]

Format = Literal["torch", "onnx", "openvino"]

OPSET = 20
"""The version of ONNX's operators that is written: the first with GridSample and AffineGrid as rotations need them."""

LARGEST = 2**31 - 2**20
"""Bytes of weights in one file of ONNX, which is one protobuf message; a little is left for the graph."""

_PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def packages_of(format: Format) -> tuple[str, ...]:
    """What writing a format, and checking what was written, needs beside torch.

    Raises:
        ConfigError: one of them is not installed.
    """
    for package in _PACKAGES[format]:
        import_optional(package)
    return _PACKAGES[format]


def write(program: ExportedProgram, path: Path, metadata: Metadata, format: Format) -> None:
    """Write `path`, and for OpenVINO the `.bin` beside it.

    Args:
        program: of `trace`.
        path: a new file.
        metadata: goes into it under `KEY`.
        format: of the file.

    Raises:
        OSError: the disk refuses.
    """
    with _quiet():
        if format == "torch":
            buffer = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
            torch.export.save(program, buffer, extra_files={f"{KEY}.json": metadata.to_json()})
            path.write_bytes(buffer.getbuffer())
        elif format == "onnx":
            path.write_bytes(_onnx(program, metadata))
            seal(path)
        else:
            _write_openvino(program, path, metadata)
            seal(path)


def _onnx(program: ExportedProgram, metadata: Metadata) -> bytes:
    size = sum(x.numel() * x.element_size() for x in program.state_dict.values())
    if size > LARGEST:
        raise ConfigError(
            f"format onnx holds at most {LARGEST} bytes of weights in one file, but this detector has {size}; "
            "take torch or openvino"
        )
    made = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=list(metadata.outputs),
        opset_version=OPSET,
        verbose=False,
    )
    if made is None:  # for mypy: with dynamo there is always a program
        raise ConfigError("torch.onnx.export gave no program, expected one; use another version of torch")
    proto = made.model_proto
    del proto.graph.value_info[:]  # shapes on the way, in terms of a symbol that torch has numbered
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        del node.metadata_props[:]  # where in whose folders the code lay that made it
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, metadata.to_json()
    data: bytes = proto.SerializeToString()
    return data


def _write_openvino(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    openvino = import_optional("openvino")
    # What openvino.convert_model does, without its report of the conversion to the makers of OpenVINO.
    frontend = import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    kind = import_module("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    decoder = kind.from_exported_program(program)  # a name keeps it: the frontend does not
    model = frontend.convert(frontend.load(decoder))
    model.inputs[0].get_tensor().set_names({"images"})
    model.reshape(
        [-1, 3, metadata.image_size, metadata.image_size]
    )  # the frontend forgets all sizes, not the batch's alone
    for output, name in zip(model.outputs, metadata.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(metadata.to_json(), [KEY])
    # Half-precision weights, the default, would change scores.
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:  # of its streams, which do not tell a full disk from another failure
        raise OSError(f"OpenVINO could not write it ({' '.join(str(error).split())[:80]})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk about themselves: on standard output, by warnings and in logs."""
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(silenced)
