"""Options of each command. Their docstrings and help texts are what `semflow COMMAND --help` prints."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from tyro.conf import Positional, arg

from .option_types import (
    AllowAnomalous,
    Alone,
    BatchSize,
    CalibrationRate,
    Device,
    Drift,
    FittedTile,
    Format,
    HoldOut,
    ImageSize,
    LoadingWorkers,
    Loggers,
    Metrics,
    Model,
    OptionalInt,
    OptionalName,
    OptionalPath,
    Precision,
    Regions,
    Resizing,
    RunDirectory,
    Settings,
    TestRate,
    Threshold,
    Together,
)


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
    categories: Together = ()
    recipe: OptionalName = None
    """Detector to build: cflow_ad, cs_flow, differnet, fastflow, memory_flow (default), msflow, padim, patchcore,
    sanflow or spade."""
    backbone: OptionalName = None
    """Name of a timm model with feature maps. Default: the recipe's, wide_resnet50_2 for memory_flow."""
    weights: OptionalName = None
    """Backbone weights: hub (default), packaged (tf_efficientnet_lite0, 1 or 2, from a package), random, or a file."""
    image_size: ImageSize = None
    """Side in pixels to which images are resized, or HEIGHTxWIDTH. Default: the recipe's, 320 for memory_flow."""
    tile: OptionalInt = None
    """Side in pixels of the tiles that images are cut into at their own size. Default: images are not cut."""
    overlap: OptionalInt = None
    """Pixels that neighboring tiles share, up to half of a tile. Default: an eighth."""
    resize: Resizing = None
    """Stretch images to --image-size (default), or keep their proportions and pad them with gray, which is ignored."""
    region: OptionalPath = None
    """Mask of the region of interest, white inside; pixels outside are ignored. A file applies to all images, as part
    of the model. A folder has a mask of the same name for each image; predict and evaluate then need one too."""
    augment: OptionalName = None
    """Augmentations of training images, separated by commas: rotate, flip, shift, light. For parts whose pose or
    lighting varies. Default: none."""
    epochs: OptionalInt = None
    """Passes over the images. Default: the recipe's, as many as take 160 training steps for memory_flow."""
    batch_size: OptionalInt = None
    """Images per training step. Default: the recipe's."""
    precision: Precision = None
    """bf16 computes training steps in bfloat16, which is faster on recent GPUs. Default: float32."""
    seed: OptionalInt = None
    """Seed of weights, synthetic anomalies and image order. Default: 0."""
    calibration: OptionalPath = None
    """Folder of other good images for p-values and decisions. No training image is then held out."""
    hold_out: HoldOut = None
    """Number of good images of each category to calibrate on instead of training; or cross: all do both, with five more
    trainings if a flow is trained. Default: a fifth, at most 99; cross if that is below 9 or needs no training."""
    false_alarm_rate: CalibrationRate = None
    allow_anomalous: AllowAnomalous = False
    device: Device = "auto"
    workers: LoadingWorkers = 0
    resume: bool = False
    """Continue the run in the output directory, or start it if there is none. With more --epochs, a finished run is
    trained further."""
    log: Loggers = ()
    """Log training curves to tensorboard, mlflow or wandb; each is an extra of that name. TensorBoard files go to the
    run directory; for the others, the client's environment variables choose the server."""
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
    categories: Together = ()
    false_alarm_rate: CalibrationRate = None
    region: Regions = None
    allow_anomalous: AllowAnomalous = False
    tile: FittedTile = None
    overlap: FittedTile = None
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
    categories: Together = ()
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
    """Data set folder with test/good, test/DEFECT and ground_truth; without ground_truth, image metrics only."""
    category: OptionalName = None
    """Category of the data set, as in fit."""
    categories: Alone = ()
    metrics: Metrics = ()
    """Further metrics, such as aupimo, aupro@0.05, spro, seg_f1, class_f1 and calibration_error; a wrong name lists
    all."""
    json: OptionalPath = None
    """Write the metrics to this JSON file, as fractions. Pixel metrics are null if the images have no masks."""
    report: OptionalPath = None
    """Folder for a page (index.html) with ROC, PRO, score histogram and all images, worst errors first. An earlier
    report is replaced."""
    false_alarm_rate: TestRate = None
    region: Regions = None
    tile: FittedTile = None
    overlap: FittedTile = None
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
    """Folder whose images are scored as they arrive (extra watch), in place of --input. Writes a line of JSON per image
    to standard output and to scores.jsonl in the output folder. Runs until it is interrupted; run it again to
    continue."""
    move_to: OptionalPath = None
    """Folder to which --watch moves each image after scoring, into good, anomalous or unreadable. Default: images
    stay."""
    map_format: Literal["npy", "png16"] = "npy"
    """Format of the raw maps: float32 arrays, or 16-bit PNG with the scale in a JSON file."""
    on_error: Literal["stop", "skip"] = "stop"
    """Stop at an unreadable image, or skip it and list it in the results. --watch always goes on."""
    category: Threshold = None
    false_alarm_rate: TestRate = None
    region: Regions = None
    tile: FittedTile = None
    overlap: FittedTile = None
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
    category: Threshold = None
    false_alarm_rate: TestRate = None
    tile: FittedTile = None
    overlap: FittedTile = None
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
    precision: Literal["float32", "float16", "bf16", "int8"] = "float32"
    """float16 halves the file; int8 needs backbone.weight_bits 8; bf16, for OpenVINO, computes in it where CPUs can."""
    category: Threshold = None
    images: OptionalPath = None
    """Image or folder of images for the comparison; up to 64 are used. Default: four textures."""
    tile: FittedTile = None
    overlap: FittedTile = None
    check: bool = True
    """Compare the exported file with the detector before saving it; --no-check skips the comparison."""


@dataclass(frozen=True)
class Benchmark:
    """Time a detector on this machine: one image at a time, and in batches."""

    model: Positional[Annotated[Path, arg(help="File created by export, or run directory created by fit.")]]
    images: OptionalPath = None
    """Image or folder of images, whose decoding is timed too; the first 64 are used. Default: textures."""
    seconds: float = 10.0
    """Time to measure, half for single images and half for batches."""
    json: OptionalPath = None
    """File for the figures, the machine and the versions."""
    batch_size: BatchSize = 8
    device: Device = "auto"


Command: TypeAlias = Demo | Fit | Calibrate | Remember | Evaluate | Predict | Score | Export | Benchmark
