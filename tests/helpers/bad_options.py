"""Bad input: options of recipes, constructors and commands."""

from collections.abc import Callable

from helpers.bad_rows import SIZE, CommandError, Row, Works, Workspace, refused
from semflow import recipes
from semflow.detectors import Scorer
from semflow.errors import CheckpointError, ConfigError
from semflow.flows import AffineCoupling, coupling_stack
from semflow.metrics import HistogramAccumulator
from semflow.objectives import Objective
from semflow.synthesis import CutPaste
from semflow.training import TrainingConfig

__all__ = ["OPTIONS"]


def built(settings: dict[str, object], recipe: str = "sanflow") -> Callable[[Workspace], object]:
    """Build a small detector."""
    small = {"backbone": "test_efficientnet", "backbone.weights": "random", "image_size": SIZE, **settings}
    return lambda _: recipes.build(recipe, small)


def fitted(*words: object) -> Callable[[Workspace], object]:
    def act(workspace: Workspace) -> object:
        workspace.dataset()
        return workspace.fit(*words)

    return act


def broken_run(name: str, content: bytes) -> Callable[[Workspace], object]:
    def act(workspace: Workspace) -> object:
        for file in workspace.run.iterdir():
            workspace.file(f"run/{file.name}", file.read_bytes())
        workspace.file(f"run/{name}", content)
        return recipes.load(workspace.path / "run")

    return act


def strides_from_json(_: Workspace) -> object:
    small = {"backbone": "test_efficientnet", "backbone.weights": "random", "image_size": SIZE, "couplings.blocks": 1}
    return len(recipes.build("sanflow", {**small, "backbone.strides": [8, 16]}).flows)


OPTIONS = [
    Row("unknown recipe", built({}, "soup"), refused(ConfigError, "recipe", "sanflow", "soup")),
    Row(
        "unknown recipe argument",
        built({"blobs": 3}),
        refused(ConfigError, "known names", "'blobs'", "couplings.blocks"),
    ),
    Row(
        "string for an integer",
        built({"couplings.blocks": "three"}),
        refused(ConfigError, "blocks must be a whole number", "'three'"),
    ),
    Row(
        "fraction for an integer",
        built({"couplings.blocks": 1.5}),
        refused(ConfigError, "blocks must be a whole number", "1.5"),
    ),
    Row(
        "True for an integer",
        built({"couplings.blocks": True}),
        refused(ConfigError, "blocks must be a whole number", "True"),
    ),
    Row(
        "integer for a bool",
        built({"couplings.standardize": 1}),
        refused(ConfigError, "couplings.standardize must be True or False", "1"),
    ),
    Row(
        "None for an integer",
        built({"couplings.blocks": None}),
        refused(ConfigError, "blocks must be a whole number", "None"),
    ),
    Row(
        "NaN for a float",
        built({"statistics.mode": float("nan")}),
        refused(ConfigError, "mode must be a finite number", "nan"),
    ),
    Row(
        "inf for a float",
        built({"statistics.kl": float("inf")}),
        refused(ConfigError, "kl must be a finite number", "inf"),
    ),
    Row(
        "integer with 30 digits", built({"couplings.blocks": 10**30}), refused(ConfigError, "blocks", "the largest is")
    ),
    Row("zero blocks", built({"couplings.blocks": 0}), refused(ConfigError, "blocks", "0")),
    Row("negative number of blocks", built({"couplings.blocks": -1}), refused(ConfigError, "blocks", "-1")),
    Row("integer for strides", built({"backbone.strides": 8}), refused(ConfigError, "strides must be a tuple", "8")),
    Row(
        "strides with a string",
        built({"backbone.strides": (8, "x")}),
        refused(ConfigError, "strides must be a tuple", "'x'"),
    ),
    Row("empty strides", built({"backbone.strides": ()}), refused(ConfigError, "strides")),
    Row("stride that the backbone lacks", built({"backbone.strides": (7,)}), refused(ConfigError, "7", "8")),
    Row("strides as a list", strides_from_json, Works("builds a detector with two scales", 2)),
    Row(
        "unknown backbone",
        built({"backbone": "resnet_of_dreams"}),
        refused(ConfigError, "resnet_of_dreams"),
    ),
    Row("missing weights file", built({"backbone.weights": "none.pth"}), refused(ConfigError, "none.pth")),
    Row("image size 0", built({"image_size": 0}), refused(ConfigError, "image_size", "at least 1")),
    Row(
        "position code with 6 channels",
        built({"couplings.position_channels": 6}),
        refused(ConfigError, "multiple of 4", "6"),
    ),
    Row(
        "unknown variance",
        built({"statistics.variance": "guessed"}),
        refused(ConfigError, "variance must be one of", "guessed"),
    ),
    Row(
        "synthetic anomalies with a standard normal base",
        built({"statistics.variance": "unit"}),
        refused(ConfigError, "variance must not be unit"),
    ),
    Row(
        "field of a group that is None",
        built({"statistics": None, "statistics.variance": "learned"}, "fastflow"),
        refused(ConfigError, "statistics must be a group", "statistics.variance", "None"),
    ),
    Row(
        "two block counts for three scales (MSFlow)",
        built({"couplings.blocks": (1, 1)}, "msflow"),
        refused(ConfigError, "blocks must be 3"),
    ),
    Row("even smoothing kernel", built({"backbone.smoothing": 2}), refused(ConfigError, "smoothing", "odd")),
    Row("top above 1", lambda _: Scorer(2, top=2), refused(ConfigError, "top must be a fraction")),
    Row("zero scales", lambda _: Scorer(0), refused(ConfigError, "scales must be at least 1")),
    Row("negative epochs", lambda _: TrainingConfig(epochs=-1), refused(ConfigError, "epochs must be at least 0")),
    Row(
        "one and a half epochs",
        lambda _: TrainingConfig(epochs=1.5),
        refused(ConfigError, "epochs must be a whole number"),
    ),  # type: ignore[arg-type]
    Row(
        "infinite learning rate",
        lambda _: TrainingConfig(learning_rate=float("inf")),
        refused(ConfigError, "learning_rate"),
    ),
    Row(
        "negative weight decay",
        lambda _: TrainingConfig(weight_decay=-1.0),
        refused(ConfigError, "weight_decay must be at least 0"),
    ),
    Row("negative weight of a loss", lambda _: Objective(bce=-1.0), refused(ConfigError, "bce", "at least 0")),
    Row("coupling with zero channels", lambda _: AffineCoupling(0), refused(ConfigError, "channels", "0")),
    Row(
        "unknown permutation",
        lambda _: coupling_stack(4, 1, permutation="firm"),
        refused(ConfigError, "hard or soft"),
    ),  # type: ignore[arg-type]
    Row("jitter above 1", lambda _: CutPaste(jitter=2.0), refused(ConfigError, "jitter must be between 0 and 1")),
    Row("histogram with 99 bits", lambda _: HistogramAccumulator(99), refused(ConfigError, "bits", "10 to 24")),
    Row("command: unknown option", fitted("--epoch", "3"), refused(CommandError, "--epoch", "semflow fit --help")),
    Row("command: string for an integer", fitted("--epochs", "many"), refused(CommandError, "many")),
    Row("command: zero epochs", fitted("--epochs", "0"), refused(CommandError, "--epochs must be at least 1")),
    Row(
        "command: unknown recipe",
        fitted("recipe must be one of", "soup"),
        refused(CommandError, "recipe must be one of", "soup"),
    ),
    Row("command: unknown recipe argument", fitted("--set", "blobs", "3"), refused(CommandError, "blobs")),
    Row(
        "command: wrong type of a recipe argument",
        fitted("--set", "couplings.blocks", "three"),
        refused(CommandError, "couplings.blocks", "whole"),
    ),
    Row(
        "command: contradictory options",
        fitted("--set", "statistics.variance", "unit", "couplings.blocks", "1"),
        refused(CommandError, "variance must not be unit"),
    ),
    Row(
        "folder that is not a run",
        lambda workspace: recipes.load(workspace.path),
        refused(CheckpointError, "must contain config.json"),
    ),
    Row(
        "run with a broken config.json",
        broken_run("config.json", b"{"),
        refused(CheckpointError, "config.json", "must be JSON"),
    ),
    Row(
        "run with unknown recipe arguments",
        broken_run(
            "config.json",
            b'{"format": 1, "recipe": "sanflow", "module": "semflow.recipes.sanflow", "arguments": {"blobs": 3}}',
        ),
        refused(CheckpointError, "blobs"),
    ),
    Row(
        "run with a truncated model",
        broken_run("model.safetensors", b"half"),
        refused(CheckpointError, "model.safetensors"),
    ),
]
