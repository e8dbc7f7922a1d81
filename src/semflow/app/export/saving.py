"""A detector to one file that runs without this library."""

import copy
import glob
import platform
import shutil
import tempfile
from importlib import metadata as distributions
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from semflow._version import __version__
from semflow.app.report.files import naming
from semflow.detectors import Detector
from semflow.errors import ConfigError, DataError, ShapeError

from .check import compare, sample_images, to_input
from .formats import Format, packages_of, write
from .graph import DetectorGraph, trace
from .metadata import InputType, Metadata, shareable
from .runtime import SUFFIXES, open_runner

__all__ = ["Exported", "check_destination", "save"]


class Exported(NamedTuple):
    """What `save` has written.

    Args:
        path: the file.
        metadata: what it says of itself.
        differences: the largest relative difference from the detector by result; empty where the check was off.

    Example:
        >>> said = Metadata("sanflow", {}, 256, "uint8", (0.0, 3.0), True, ("score", "anomaly_map"))
        >>> exported = Exported(Path("parts.onnx"), said, {"score": 2e-6, "anomaly_map": 5e-6})
        >>> max(exported.differences.values()) < 1e-4
        True
    """

    path: Path
    metadata: Metadata
    differences: dict[str, float]


def save(
    detector: Detector,
    path: str | Path,
    format: Format | None = None,
    input: InputType = "uint8",
    images: Tensor | None = None,
    check: bool = True,
) -> Exported:
    """Write a trained detector as one graph, from images to scores, maps and decisions, of any batch size.

    The graph holds the normalisation, the backbone, the flows, the base, the score and the calibration. Resizing stays
    outside: images come at the detector's size, RGB. What was written is opened and compared with the detector before
    it takes its name, so a file that is there is right.

    Args:
        detector: trained; it stays as it is, on its device.
        path: a new file: `.pt2` (torch.export), `.onnx`, or `.xml` (OpenVINO, with a `.bin` beside it).
        format: `torch`, `onnx` or `openvino`; by default what the ending says.
        input: `uint8`, images from 0 to 255 as decoders and cameras give them; or `float32`, from 0 to 1.
        images: (B, 3, S, S) to compare on, of either type; by default four textures.
        check: compare.

    Raises:
        ConfigError: the format does not exist, does not go with the ending, needs a package that is not installed, or
            cannot hold the detector.
        DataError: there is such a file, or nothing can be written there.
        ExportError: the exported model gives other numbers than the detector.
        ShapeError: `images` are not of the detector's size.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = save(detector, Path(folder) / "parts.pt2")
        >>> exported.metadata.recipe, exported.metadata.outputs, max(exported.differences.values()) < 1e-4
        ('cflow_ad', ('score', 'anomaly_map'), True)
    """
    path = Path(path)
    chosen = check_destination(path, format)
    if input not in get_args(InputType):
        raise ConfigError(f"input must be one of {', '.join(get_args(InputType))}, but got {input!r}")
    graph = DetectorGraph(copy.deepcopy(detector).cpu().float().eval().requires_grad_(False), input)
    samples = _samples(images, graph)
    said = _metadata(graph, packages_of(chosen))
    program = trace(graph)
    differences: dict[str, float] = {}
    parent, prefix, suffix = path.absolute().parent, f".{path.name}.", ".partial"
    for left in parent.glob(f"{glob.escape(prefix)}????????{suffix}"):  # of an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    # A folder beside it, so that each file keeps its name while it is made and then moves within one file system.
    with naming(path), tempfile.TemporaryDirectory(suffix, prefix, parent) as folder:
        staged = Path(folder) / path.name
        write(program, staged, said, chosen)
        if check:
            differences = compare(graph, open_runner(staged), samples)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # the file itself last
            shutil.move(file, path.parent / file.name)
    return Exported(path, said, differences)


def check_destination(path: Path, format: Format | None = None) -> Format:
    """The format that will be written there: what can be said before a detector is loaded.

    Raises:
        ConfigError: as in `save`.
        DataError: as in `save`.
    """
    chosen = _format(path, format)
    packages_of(chosen)
    _refuse_existing(path, chosen)
    return chosen


def _format(path: Path, format: Format | None) -> Format:
    by_suffix: dict[str, Format] = {".pt2": "torch", ".onnx": "onnx", ".xml": "openvino"}
    if format is not None and format not in SUFFIXES:
        raise ConfigError(f"format must be one of {', '.join(SUFFIXES)}, but got {format!r}")
    found = by_suffix.get(path.suffix)
    if found is None or (format is not None and found != format):
        wanted = SUFFIXES[format] if format is not None else ", ".join(by_suffix)
        raise ConfigError(
            f"{path}: expected a file ending in {wanted}, but got {path.suffix or 'no ending'}; rename it"
        )
    return found


def _refuse_existing(path: Path, format: Format) -> None:
    files = [path, path.with_suffix(".bin")] if format == "openvino" else [path]
    for file in files:
        if file.exists():
            raise DataError(f"{file}: expected a new file, but it is there; choose another or delete it")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path.absolute().parent}: expected a folder to write into, but there is none; make it")


def _samples(images: Tensor | None, graph: DetectorGraph) -> Tensor:
    side = graph.detector.provenance.image_size
    if images is None:
        return to_input(sample_images(side), graph.input)
    if images.dim() != 4 or images.shape[1:] != (3, side, side) or not len(images):
        raise ShapeError(f"images must be (B, 3, {side}, {side}), B at least 1, but got {tuple(images.shape)}")
    return to_input(images.cpu(), graph.input)


def _metadata(graph: DetectorGraph, packages: tuple[str, ...]) -> Metadata:
    detector, calibration = graph.detector, graph.detector.calibration
    known = {}
    if calibration.thresholds is not None:
        image, pixel = calibration.thresholds.tolist()
        known = {
            "images": calibration.count,
            "false_alarm_rate": calibration.false_alarm_rate,
            "score_threshold": image,
            "map_threshold": pixel,
        }
    return Metadata(
        recipe=detector.provenance.recipe,
        arguments=shareable(detector.provenance.arguments),
        image_size=detector.provenance.image_size,
        input=graph.input,
        map_range=detector.map_range,
        localizes=detector.localizes,
        outputs=graph.outputs,
        calibration=known,
        versions={
            "semflow": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: distributions.version(name) for name in packages},
        },
    )
