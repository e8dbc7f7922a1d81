"""Options of each command. Their docstrings and help texts are what `semflow COMMAND --help` prints."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from tyro.conf import arg

from semflow.errors import ConfigError

# Options that may be left out. Their help texts name the default, so that tyro's "(default: None)" is not needed.
OptionalInt: TypeAlias = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
OptionalPath: TypeAlias = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
HoldOut: TypeAlias = Annotated[int | Literal["cross"] | None, arg(metavar="INT|cross", help_behavior_hint="")]
OptionalName: TypeAlias = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
ImageSize: TypeAlias = Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="")]
Resizing: TypeAlias = Annotated[Literal["stretch", "pad"] | None, arg(help_behavior_hint="")]
Settings: TypeAlias = Annotated[dict[str, str], arg(metavar="NAME VALUE ...", help_behavior_hint="")]
Format: TypeAlias = Annotated[Literal["torch", "onnx", "openvino"] | None, arg(help_behavior_hint="")]

# Options that several commands share.
Model: TypeAlias = Annotated[Path, arg(help="Run directory created by fit, or file created by export.")]
RunDirectory: TypeAlias = Annotated[Path, arg(help="Run directory created by fit.")]
CalibrationRate: TypeAlias = Annotated[
    float | None,
    arg(
        metavar="RATE",
        help="Share of good images that may be called anomalous. Default: the lowest of 0.01, 0.05 and 0.1 for which "
        "there are enough calibration images.",
        help_behavior_hint="",
    ),
]
TestRate: TypeAlias = Annotated[
    float | None,
    arg(metavar="RATE", help="False-alarm rate. Default: the rate of the calibration.", help_behavior_hint=""),
]
Drift: TypeAlias = Annotated[
    Path | None,
    arg(
        metavar="FILE",
        help="File that is kept over all runs, to warn when images that pass as good no longer score as before. Names "
        "of images must sort by time. A warning without a cause ever comes with a probability of at most 0.01.",
        help_behavior_hint="",
    ),
]
BatchSize: TypeAlias = Annotated[int, arg(help="Images per batch.")]
LoadingWorkers: TypeAlias = Annotated[int, arg(help="Number of processes that load images.")]
Device: TypeAlias = Annotated[
    str, arg(metavar="DEVICE", help="auto (CUDA if available), cpu, cuda, a GPU such as cuda:1, or mps.")
]
Regions: TypeAlias = Annotated[
    Path | None,
    arg(metavar="PATH", help="Mask, or folder of masks, as in fit, for a model of such masks.", help_behavior_hint=""),
]
AllowAnomalous: TypeAlias = Annotated[
    bool, arg(help="Use images all the same that their folder or mask calls anomalous.")
]


@dataclass(frozen=True)
class Demo:
    """Train on real textures and find defects that were not seen in training. Offline; about a minute on two CPUs.

    The data are crops of photographs of brick, grass and gravel from scikit-image. The default recipe, memory_flow, is
    trained for each texture, and sanflow for brick, on crops of the left part. They are calibrated on good crops of the
    right part and tested on others with synthetic defects of other kinds than those used in training.
    """

    output: Path = Path("semflow-demo")
    """Output folder for pictures, report, data and models. An earlier demo in this folder is replaced."""
    epochs: int = 3
    """Passes over the crops in the training of each detector."""
    seed: int = 0
    """Seed of crops, defects, weights and training."""
    device: Device = "auto"


@dataclass(frozen=True)
class Fit:
    """Train a detector on images of good parts and save it to a run directory."""

    data: OptionalPath = None
    """Folder of good images, or data set folder that contains them in train/good (required, here or in --config)."""
    output: OptionalPath = None
    """Run directory to create (required)."""
    category: OptionalName = None
    """Category of the data set: a folder name, a ShanghaiTech scene, or the normal class of CIFAR-10."""
    recipe: OptionalName = None
    """Detector to build: cflow_ad, cs_flow, differnet, fastflow, memory_flow (default), msflow, padim, patchcore,
    sanflow or spade."""
    backbone: OptionalName = None
    """Name of a timm model with feature maps. Default: the recipe's, wide_resnet50_2 for memory_flow."""
    weights: OptionalName = None
    """Backbone weights: hub (default), packaged (tf_efficientnet_lite0, 1 or 2, from a package), random, or a file."""
    image_size: ImageSize = None
    """Side in pixels to which images are resized, or HEIGHTxWIDTH. Default: the recipe's, 320 for memory_flow."""
    resize: Resizing = None
    """Stretch images to this size (default), or keep their proportions and pad them with gray, which does not count."""
    region: OptionalPath = None
    """Mask of the region of interest, white inside, for all images and part of the model; or a folder with a mask for
    each image, of the same name, as predict then needs too. What is outside neither trains, scores nor counts."""
    augment: OptionalName = None
    """Random changes of the images that are trained on, some of rotate,flip,shift,light, for parts that lie as they
    like. Default: none."""
    epochs: OptionalInt = None
    """Passes over the images. Default: the recipe's, as many as take 160 training steps for memory_flow."""
    batch_size: OptionalInt = None
    """Images per training step. Default: the recipe's."""
    seed: OptionalInt = None
    """Seed of weights, synthetic anomalies and image order. Default: 0."""
    calibration: OptionalPath = None
    """Folder of other good images for p-values and decisions. No training image is then held out."""
    hold_out: HoldOut = None
    """Number of good images to calibrate on instead of training, or cross: train and calibrate on all, with five more
    trainings if a flow is trained. Default: a fifth, at most 99; cross if that is fewer than 9 or costs nothing."""
    false_alarm_rate: CalibrationRate = None
    allow_anomalous: AllowAnomalous = False
    device: Device = "auto"
    workers: LoadingWorkers = 0
    resume: bool = False
    """Continue the run in the output directory, or start it if there is none. With more --epochs, a finished run is
    trained further."""
    config: OptionalPath = None
    """TOML file with a configuration, as printed by --print-config. Options on the command line override it."""
    print_config: bool = False
    """Print the complete configuration as TOML, and exit."""
    set: Settings = field(default_factory=dict)
    """Recipe arguments by name, for example couplings.blocks 4 backbone.strides 4,8,16 synthesis none. An unknown name
    prints the valid ones."""


@dataclass(frozen=True)
class Calibrate:
    """Compute p-values and thresholds of a trained detector from good images that were not used for training."""

    model: Annotated[Path, arg(help="Run directory created by fit. Its model is replaced by the calibrated one.")]
    data: Path
    """Folder of good images that were not used for training, taken under the same conditions as the images to test."""
    false_alarm_rate: CalibrationRate = None
    region: Regions = None
    allow_anomalous: AllowAnomalous = False
    batch_size: BatchSize = 8
    device: Device = "auto"
    workers: LoadingWorkers = 0


@dataclass(frozen=True)
class Remember:
    """Put a memory of good images under the flow of a trained detector, without training."""

    model: RunDirectory
    data: Path
    """Folder of good images, or data set folder that contains them in train/good."""
    output: OptionalPath = None
    """Run directory to create. Default: the model of the run is replaced."""
    category: OptionalName = None
    """Category of the data set, as in fit."""
    form: Literal["nearest", "kernel", "distance"] = "nearest"
    """Log density from the nearest stored vector or from all of them, or the plain distance to the nearest."""
    size: int | float = 8000
    """Stored vectors per scale, or their share of all; 0 for all."""
    neighbors: int = 1
    """Number of the nearest vector whose distance counts; 1 is the nearest."""
    space: Literal["features", "latents"] = "features"
    """Space in which the vectors are chosen."""
    log_det: bool = True
    """Score the features' log-probability; --no-log-det scores the latents'."""
    seed: int = 0
    """Seed of the choice of vectors."""
    calibration: OptionalPath = None
    """Folder of other good images for p-values and decisions. Without it or --hold-out, the calibration is removed."""
    hold_out: HoldOut = None
    """Number of good images to calibrate on instead of storing; the number given to fit holds out the same images. Or
    cross, if no flow is trained: store and calibrate on all."""
    false_alarm_rate: CalibrationRate = None
    region: Regions = None
    allow_anomalous: AllowAnomalous = False
    batch_size: BatchSize = 8
    device: Device = "auto"
    workers: LoadingWorkers = 0


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained detector on a labeled test set: image AUROC, pixel AUROC, AUPRO and F1-max."""

    model: Model
    data: Path
    """Data set folder with test/good, test/DEFECT and ground_truth; image metrics only if ground_truth is missing."""
    category: OptionalName = None
    """Category of the data set, as in fit."""
    json: OptionalPath = None
    """File for the metrics, as fractions; null if there are no masks."""
    report: OptionalPath = None
    """Folder for a page (index.html) with ROC, PRO, score histogram and all images, worst errors first. An earlier
    report is replaced."""
    false_alarm_rate: TestRate = None
    region: Regions = None
    batch_size: BatchSize = 8
    device: Device = "auto"
    workers: LoadingWorkers = 0


@dataclass(frozen=True)
class Predict:
    """Score images and write scores.csv, scores.json, a heat map over each image, raw anomaly maps, and index.html."""

    model: Model
    output: Path
    """Output folder. It appears when it is complete. If the command is interrupted, run it again to continue."""
    input: OptionalPath = None
    """Image, or folder of images (searched recursively)."""
    watch: OptionalPath = None
    """Folder whose images are scored as they arrive (extra watch), in place of --input. Each one gets a line of JSON on
    standard output and in scores.jsonl in the output folder, which grows. Ends when it is interrupted; run it again to
    continue."""
    move_to: OptionalPath = None
    """Folder to which --watch moves each image after scoring, into good, anomalous or unreadable. Default: images
    stay."""
    map_format: Literal["npy", "png16"] = "npy"
    """Format of the raw maps: float32 arrays, or 16-bit PNG with the scale in a JSON file."""
    on_error: Literal["stop", "skip"] = "stop"
    """Stop at an unreadable image, or skip it and list it in the results. --watch always goes on."""
    false_alarm_rate: TestRate = None
    region: Regions = None
    drift: Drift = None
    batch_size: BatchSize = 8
    device: Device = "auto"
    workers: LoadingWorkers = 0


@dataclass(frozen=True)
class Score:
    """Score millions of images with Ray (extra ray). Writes scores without maps to Parquet files, one per block.

    Runs on this machine, or on the cluster in the environment variable RAY_ADDRESS. If the command is interrupted, run
    it again to continue with the missing blocks.
    """

    model: Model
    input: Path
    """Folder of images; LIST.txt with one path per line; or TABLE.parquet with a column path."""
    output: Path
    """Output folder for blocks/*.parquet. All machines must see this folder and the model at the same path."""
    workers: int = 1
    """Number of processes that hold the model, each with one GPU if there are any."""
    threads: OptionalInt = None
    """CPUs per worker without a GPU. Default: an equal share of this machine, or 1 on a cluster."""
    block_size: int = 64
    """Images that are decoded, scored and committed together."""
    on_error: Literal["stop", "skip"] = "stop"
    """Stop at an unreadable image, or write a row with the error instead of a score."""
    false_alarm_rate: TestRate = None
    drift: Drift = None
    batch_size: BatchSize = 8
    device: Device = "auto"


@dataclass(frozen=True)
class Export:
    """Export a detector to one file that runs without this library and computes scores, maps and decisions."""

    model: RunDirectory
    output: Path
    """New file: .pt2 (torch.export), .onnx, or .xml (OpenVINO, with a .bin file beside it)."""
    format: Format = None
    """Format of the file. Default: the one of the suffix."""
    input_type: Literal["uint8", "float32"] = "uint8"
    """Input of the exported file: pixels from 0 to 255, or from 0 to 1."""
    images: OptionalPath = None
    """Image or folder of images for the comparison; the first eight are used. Default: four textures."""
    check: bool = True
    """Compare the exported file with the detector before saving it; --no-check skips the comparison."""


Command: TypeAlias = Demo | Fit | Calibrate | Remember | Evaluate | Predict | Score | Export

NUMBERS = ("epochs", "batch_size", "workers", "seed", "hold_out", "threads", "block_size", "neighbors")
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?|mps")
LARGEST_SEED = 2**63 - 1  # torch accepts no larger one


def check_numbers(options: Command) -> None:
    """Raise ConfigError if a number is out of range."""
    may_be_zero = ("seed", "hold_out") if isinstance(options, Score) else ("seed", "hold_out", "workers")
    for name in NUMBERS:
        value, least = getattr(options, name, None), 0 if name in may_be_zero else 1
        if value not in (None, "cross") and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, but got {value}")
    if not DEVICES.fullmatch(device := getattr(options, "device", "cpu")):
        raise ConfigError(f"--device must be auto, cpu, cuda, cuda:N or mps, but got {device}")
    rate = getattr(options, "false_alarm_rate", None)
    if rate is not None and not 0 < rate < 1:
        raise ConfigError(f"--false-alarm-rate must be between 0 and 1, but got {rate:g}; use for example 0.01")
    seed = getattr(options, "seed", None)
    if seed is not None and seed > LARGEST_SEED:
        raise ConfigError(f"--seed must be at most {LARGEST_SEED}, but got {seed}")
