"""Quantization of a converted backbone to 8 bits with NNCF, OpenVINO's own tool."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semflow._optional import import_optional
from semflow.errors import ConfigError

LEAST_IMAGES = 8
"""Fewest images for `int8`; every second one measures ranges, and the others are compared."""

BACKBONE = "detector.features"
OUTSIDE = ("Constant", "Parameter", "Result")
QUANTIZED = ("Convolution", "GroupConvolution", "MatMul")
"""Operations in 8 bits. With average pooling too, some versions of OpenVINO compute other features."""


def import_nncf() -> Any:
    """Import NNCF without its telemetry."""
    os.environ.setdefault("NNCF_CI", "1")
    return import_optional("nncf")


def quantize_backbone(model: Any, program: Any, images: NDArray[Any]) -> Any:
    """Return an OpenVINO model with the convolutions and matrix products of its backbone in 8 bits.

    Flows, log-probabilities, distances to stored vectors, score and calibration stay in float32: features are large
    compared with their distances, which 8 bits would round away.

    Args:
        model: OpenVINO model.
        program: FX graph module that it was converted from, whose names its operations have.
        images: (B, 3, S, S) of the model's input type, on which ranges of values are measured.
    """
    nncf = import_nncf()
    backbone = {node.name for node in program.graph.nodes if _in_backbone(node)}
    ops = {op.get_friendly_name(): op.get_type_name() for op in model.get_ops()}
    chosen = {name for name, kind in ops.items() if kind in QUANTIZED and name.partition("/")[0] in backbone}
    ignored = [name for name, kind in ops.items() if name not in chosen and kind not in OUTSIDE]
    if not chosen:
        raise ConfigError("backbone must have convolutions or matrix products for precision int8, but got none")
    return nncf.quantize(
        model,
        nncf.Dataset([np.ascontiguousarray(image[None]) for image in images]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
    )


def _in_backbone(node: Any) -> bool:
    modules = (node.meta.get("nn_module_stack") or {}).values()
    return any(str(path) == BACKBONE or str(path).startswith(f"{BACKBONE}.") for path, _ in modules)
