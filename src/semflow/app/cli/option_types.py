"""Types of options that several commands share, with their help texts."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from tyro.conf import arg

# Options that may be left out. Their help texts name the default, so that tyro's "(default: None)" is not needed.
OptionalInt: TypeAlias = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
OptionalPath: TypeAlias = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
HoldOut: TypeAlias = Annotated[int | Literal["cross"] | None, arg(metavar="INT|cross", help_behavior_hint="")]
OptionalName: TypeAlias = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
ImageSize: TypeAlias = Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="")]
Resizing: TypeAlias = Annotated[Literal["stretch", "pad"] | None, arg(help_behavior_hint="")]
Settings: TypeAlias = Annotated[dict[str, str], arg(metavar="NAME VALUE ...", help_behavior_hint="")]
Loggers: TypeAlias = Annotated[
    tuple[Literal["tensorboard", "mlflow", "wandb"], ...], arg(metavar="NAME ...", help_behavior_hint="")
]
Together: TypeAlias = Annotated[
    tuple[str, ...],
    arg(
        metavar="NAME ...",
        help="Several categories of the data set, or all, for one model of them together, with a calibration for each.",
        help_behavior_hint="",
    ),
]
Alone: TypeAlias = Annotated[
    tuple[str, ...],
    arg(
        metavar="NAME ...",
        help="Several categories, or all, each tested alone. Default: those of the model, if it has several.",
        help_behavior_hint="",
    ),
]
Metrics: TypeAlias = Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")]
Precision: TypeAlias = Annotated[Literal["float32", "bf16"] | None, arg(help_behavior_hint="")]
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
        "of images must sort by time. The probability of ever giving a false warning is at most 0.01.",
        help_behavior_hint="",
    ),
]
BatchSize: TypeAlias = Annotated[int, arg(help="Images per batch.")]
LoadingWorkers: TypeAlias = Annotated[int, arg(help="Number of processes that load images.")]
Device: TypeAlias = Annotated[
    str, arg(metavar="DEVICE", help="auto (CUDA if available), cpu, cuda, a GPU such as cuda:1, or mps.")
]
FittedTile: TypeAlias = Annotated[
    int | None,
    arg(metavar="INT", help="Default: the value given to fit. Another value is an error.", help_behavior_hint=""),
]
Regions: TypeAlias = Annotated[
    Path | None,
    arg(metavar="PATH", help="Mask, or folder of masks, as in fit, for a model of such masks.", help_behavior_hint=""),
]
Threshold: TypeAlias = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help="Category of the images, whose calibration decides, for a model of several categories. Default: all of "
        "them together.",
        help_behavior_hint="",
    ),
]
AllowAnomalous: TypeAlias = Annotated[
    bool, arg(help="Also use images that are labeled anomalous by their folder or mask.")
]
