"""The options of each command: the docstrings and comments are its help."""

__all__ = ["Calibrate", "Command", "Demo", "Device", "Evaluate", "Export", "Fit", "Predict", "Score", "check_numbers"]

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from semflow.errors import ConfigError

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
OptionalInt: TypeAlias = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalRate: TypeAlias = Annotated[float | None, tyro.conf.arg(metavar="RATE")]
OptionalPath: TypeAlias = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
OptionalStr: TypeAlias = Annotated[str | None, tyro.conf.arg(metavar="NAME")]


@dataclass(frozen=True)
class Demo:
    """Train on real textures and find defects never seen in training: offline, in under three minutes on two cores.

    Photographs of brick, grass and gravel (from scikit-image) are cut into crops, a detector is trained on the left
    part of each, and defects of kinds that its training does not synthesise are looked for in the right part.
    """

    output: Path = Path("semflow-demo")
    """Folder for the pictures, the page, the data and the trained models; a former demo there is replaced."""
    epochs: OptionalInt = None
    """Passes over the crops of each texture; by default what reaches good maps in the time."""
    seed: int = 0
    """Of the crops, the defects, the weights and the training."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""


@dataclass(frozen=True)
class Fit:
    """Train a detector on images of good parts and leave it in a run directory."""

    data: Path
    """A folder of good images, or a data set folder that holds them in train/good."""
    output: Path
    """The run directory to make."""
    category: OptionalStr = None
    """Which of the categories in the folder: a folder's name, a scene of ShanghaiTech, CIFAR-10's normal class."""
    recipe: str = "sanflow"
    """How the detector is built: sanflow, cflow_ad, fastflow, differnet, cs_flow or msflow."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="STR")] = None
    """Any timm model that gives feature maps; by default the recipe's, wide_resnet50_2 for sanflow."""
    weights: str = "hub"
    """hub (downloaded), packaged (tf_efficientnet_lite0, 1 or 2 from an installed package), random, or a file."""
    image_size: OptionalInt = None
    """Side in pixels that images are resized to; by default the recipe's, 256 for sanflow."""
    epochs: OptionalInt = None
    """Passes over the images; by default as the recipe has it."""
    batch_size: OptionalInt = None
    """Images a step; by default as the recipe has it."""
    seed: int = 0
    """Of the weights, the synthetic anomalies and the order of images."""
    calibration: OptionalPath = None
    """A folder of good images that are not among the data, for p-values and decisions; then none is held out."""
    hold_out: OptionalInt = None
    """Good images to leave out of training for that; by default a fifth, at most 99, or 0 if that is fewer than 9."""
    false_alarm_rate: OptionalRate = None
    """Which share of good images may be called anomalous; by default the lowest of 0.01, 0.05, 0.1 that they allow."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    workers: int = 0
    """Processes that load images."""
    resume: bool = False
    """Go on with the run in the output directory; start it if there is none."""
    set: dict[str, str] = field(default_factory=dict)
    """Further arguments of the recipe as name and value, such as: --set blocks 4 synthesis false strides 4,8,16;
    a name that is none is answered with all of them"""


@dataclass(frozen=True)
class Calibrate:
    """Let a trained detector decide: p-values and thresholds from good images that it was not trained on."""

    model: Path
    """A run directory that fit has made; it is changed."""
    data: Path
    """A folder of good images, none of them trained on, taken as those to be judged will be."""
    false_alarm_rate: OptionalRate = None
    """Which share of good images may be called anomalous; by default the lowest of 0.01, 0.05, 0.1 that they allow."""
    batch_size: int = 8
    """Images at a time."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    workers: int = 0
    """Processes that load images."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained detector on a labelled test set: image AUROC, pixel AUROC, AUPRO and F1-max."""

    model: Path
    """A run directory that fit has made, or a file that export has made."""
    data: Path
    """A data set folder with test/good, test/DEFECT and ground_truth; without ground_truth, image metrics only."""
    category: OptionalStr = None
    """Which of the categories in the folder, as in fit."""
    json: Path | None = None
    """Also write the figures to this file, as fractions, null where there are no masks."""
    false_alarm_rate: OptionalRate = None
    """Decide at another rate than the model was calibrated for."""
    batch_size: int = 8
    """Images at a time."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    workers: int = 0
    """Processes that load images."""


@dataclass(frozen=True)
class Predict:
    """Score images: scores.csv, scores.json, a heat map over each image, raw anomaly maps, and index.html."""

    model: Path
    """A run directory that fit has made, or a file that export has made."""
    input: Path
    """An image, or a folder of images, searched with all its subfolders."""
    output: Path
    """The folder to make; it appears when everything in it is complete. After a kill the same command goes on."""
    map_format: Literal["npy", "png16"] = "npy"
    """Raw maps as float32 arrays, or as 16-bit PNG with their scale beside them."""
    on_error: Literal["stop", "skip"] = "stop"
    """At an image that cannot be read: stop and name it, or finish the folder and list what was left out."""
    false_alarm_rate: OptionalRate = None
    """Decide at another rate than the model was calibrated for."""
    batch_size: int = 8
    """Images at a time."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    workers: int = 0
    """Processes that load images."""


@dataclass(frozen=True)
class Score:
    """Score millions of images on Ray (extra ray): scores without maps, in Parquet files that are committed one by one.

    On this machine, or on the cluster that the environment variable RAY_ADDRESS names. After a kill the same command
    goes on with the blocks that are missing.
    """

    model: Path
    """A run directory that fit has made, or a file that export has made; at the same place on all machines."""
    input: Path
    """A folder of images; LIST.txt with a path a line; or TABLE.parquet with a column path."""
    output: Path
    """The folder of the results, which all machines share: blocks/*.parquet."""
    workers: int = 1
    """Processes that hold the model, each with a GPU if there are any."""
    threads: OptionalInt = None
    """CPUs of each worker that has no GPU; by default its share of this machine's, on a cluster 1."""
    block_size: int = 64
    """Images that are decoded, scored and committed together."""
    on_error: Literal["stop", "skip"] = "stop"
    """At an image that cannot be read: stop and name it, or give it a row with the error in place of a score."""
    false_alarm_rate: OptionalRate = None
    """Decide at another rate than the model was calibrated for."""
    batch_size: int = 8
    """Images at a time."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where Ray has it."""


@dataclass(frozen=True)
class Export:
    """Write a detector as one file that runs without this library: images to scores, maps and decisions."""

    model: Path
    """A run directory that fit has made."""
    output: Path
    """The new file: .pt2 (torch.export), .onnx, or .xml (OpenVINO, with a .bin beside it)."""
    format: Literal["torch", "onnx", "openvino"] | None = None
    """By default what the ending of the output says."""
    input_type: Literal["uint8", "float32"] = "uint8"
    """What the file takes: images from 0 to 255 as they are decoded, or from 0 to 1."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """An image or a folder of images to compare on, the first eight; by default four textures."""
    check: bool = True
    """Compare the file with the detector before it appears; --no-check leaves that out."""


Command: TypeAlias = Demo | Fit | Calibrate | Evaluate | Predict | Score | Export

LEAST = {"epochs": 1, "batch_size": 1, "image_size": 1, "workers": 0, "seed": 0, "hold_out": 0}
LEAST |= {"threads": 1, "block_size": 1}
LARGEST_SEED = 2**63 - 1  # what torch takes


def check_numbers(options: Command) -> None:
    """Raise ConfigError, in terms of the command line, for a number that nothing can be done with."""
    for name, least in LEAST.items():
        value = getattr(options, name, None)
        least = 1 if name == "workers" and isinstance(options, Score) else least  # elsewhere they only load images
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, but got {value}")
    rate = getattr(options, "false_alarm_rate", None)
    if rate is not None and not 0 < rate < 1:
        raise ConfigError(f"--false-alarm-rate must be between 0 and 1, such as 0.01, but got {rate:g}")
    seed = getattr(options, "seed", 0)
    if seed > LARGEST_SEED:
        raise ConfigError(f"--seed must be at most {LARGEST_SEED}, but got {seed}")
