"""Export of a detector to a file."""

import copy
import platform
from importlib import metadata as distributions
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from semflow._defaults import own_defaults
from semflow._version import __version__
from semflow.detectors import Detector
from semflow.errors import ConfigError, DataError
from semflow.files import remove_partial, staging, writing

from .check import compare, sample_images, to_input
from .cost import Cost, cost_of
from .formats import packages_of, write
from .graph import DetectorGraph, trace
from .metadata import InputType, Metadata, Precision, shareable
from .precision import halve_weights, store_integers
from .runtime import SUFFIXES, Format, open_runner


class Exported(NamedTuple):
    """Result of `save`.

    Args:
        path: The file.
        metadata: Its metadata.
        differences: Largest relative difference from the detector by name of the result; empty without the check, and
            for other precisions than float32.
        cost: What another precision costs; None without the check, and for float32.

    Example:
        >>> metadata = Metadata("sanflow", {}, 256, "uint8", (0.0, 3.0), True, ("score", "anomaly_map"))
        >>> Exported(Path("parts.onnx"), metadata, {"score": 2e-6}).differences
        {'score': 2e-06}
    """

    path: Path
    metadata: Metadata
    differences: dict[str, float]
    cost: Cost | None = None


@own_defaults()
def save(
    detector: Detector,
    path: str | Path,
    format: Format | None = None,
    input: InputType = "uint8",
    images: Tensor | None = None,
    check: bool = True,
    precision: Precision = "float32",
) -> Exported:
    """Write a trained detector as one graph, from images to scores, maps and decisions, for any batch size.

    The graph contains normalization, backbone, flows, base, score and calibration, but no resizing: it expects RGB
    images of the detector's size, or of its tiles (see `run_image`), with their region as a fourth channel if those of
    training had one; runners repeat gray ones. Before the file appears, it is opened and compared with the detector.

    Args:
        detector: Trained detector; it is not changed.
        path: New file: `.pt2` (torch.export), `.onnx`, or `.xml` (OpenVINO, with a `.bin` beside it).
        format: `torch`, `onnx` or `openvino`; by default, as the ending of the path.
        input: `uint8` for images from 0 to 255, as decoders and cameras give them, or `float32` for 0 to 1.
        images: (B, C, H, W) to compare on, of either type; by default, four textures.
        check: Compare the file with the detector.
        precision: `float32`, or `float16` to store the weights in half the space and compute in float32, `int8` to
            store those of the backbone in a quarter and others in half, or, for OpenVINO, `bf16` to compute in bfloat16
            on CPUs that have it. For `int8`, train with `weight_bits=8` of the backbone.

    Raises:
        ConfigError: If the format does not match the ending, needs a package that is not installed, or cannot store
            the detector.
        ExportError: If the results of the file differ from those of the detector by more than the precision explains.

    Example:
        >>> import tempfile
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = save(detector, Path(folder) / "parts.pt2")
        >>> exported.metadata.recipe, exported.metadata.outputs, max(exported.differences.values()) < 1e-4
        ('cflow_ad', ('score', 'anomaly_map'), True)
    """
    path = Path(path)
    chosen = check_destination(path, format, precision)
    if input not in get_args(InputType):
        raise ConfigError(f"input must be one of {', '.join(get_args(InputType))}, but got {input!r}")
    graph = DetectorGraph(copy.deepcopy(detector).cpu().float().eval().requires_grad_(False), input)
    made = detector.provenance
    given = sample_images(made.image_size, made.channels) if images is None else images.cpu()
    samples, lossy = to_input(given, input), precision != "float32"
    about = _metadata(graph, packages_of(chosen), precision)
    program = trace(_with_integers(graph) if precision == "int8" else graph)
    if precision in ("float16", "int8"):
        halve_weights(program)
    remove_partial(path.parent, path.name)
    with writing(path), staging(path) as folder:
        staged = folder / path.name
        write(program, staged, about, chosen)
        runner = open_runner(staged) if check else None
        differences = compare(graph, runner, samples) if runner and not lossy else {}
        cost = cost_of(graph, runner, samples, precision) if runner and lossy else None
    return Exported(path, about, differences, cost)


def _with_integers(graph: DetectorGraph) -> DetectorGraph:
    kept = {id(x): x for x in (*graph.parameters(), *graph.buffers())}  # shared, not copied
    backbone = {id(x) for x in graph.detector.features.parameters()}
    small = copy.deepcopy(graph, {key: x for key, x in kept.items() if key not in backbone})
    store_integers(small.detector.features)
    return small


def check_destination(path: Path, format: Format | None = None, precision: Precision = "float32") -> Format:
    """Check the arguments of `save` that need no detector, and return the format."""
    if format is not None and format not in SUFFIXES:
        raise ConfigError(f"format must be one of {', '.join(SUFFIXES)}, but got {format!r}")
    suffixes = SUFFIXES if format is None else {format: SUFFIXES[format]}
    chosen: Format | None = next((name for name, suffix in suffixes.items() if suffix == path.suffix), None)
    if chosen is None:
        raise ConfigError(
            f"{path} must end in {', '.join(suffixes.values())}, but got {path.suffix or 'no ending'}; rename it"
        )
    packages_of(chosen)
    if precision not in get_args(Precision):
        raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}, but got {precision!r}")
    if precision == "bf16" and chosen != "openvino":
        raise ConfigError(f"precision must be float32, float16 or int8 for format {chosen}, but got bf16; use openvino")
    for file in [path, path.with_suffix(".bin")] if chosen == "openvino" else [path]:
        if file.exists() or file.is_symlink():
            found = "a link" if file.is_symlink() else "an existing one"
            raise DataError(f"{file} must be a new file, but got {found}; choose another or delete it")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path.absolute().parent} must be a folder, but got none; create it")
    return chosen


def _metadata(graph: DetectorGraph, packages: tuple[str, ...], precision: Precision) -> Metadata:
    detector, calibration = graph.detector, {}
    if detector.calibration.thresholds is not None:
        score, pixel = detector.calibration.thresholds.tolist()
        calibration = {
            "images": detector.calibration.count,
            "cross": detector.provenance.calibration == "cross",
            "false_alarm_rate": detector.calibration.false_alarm_rate,
            "score_threshold": score,
            "map_threshold": pixel,
        }
        if detector.calibration.chosen is not None:
            calibration["category"] = detector.decides_for[detector.calibration.chosen]
    versions = {"semflow": __version__, "python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: distributions.version(name) for name in packages}
    about = detector.provenance
    size = about.image_size
    return Metadata(
        about.recipe, shareable(about.arguments), size if isinstance(size, int) else list(size), graph.input,
        detector.map_range, detector.localizes, graph.outputs, calibration, versions, about.resize, about.regions,
        {} if about.tiles is None else about.tiles.as_dict(), precision=precision,
    )  # fmt: skip
