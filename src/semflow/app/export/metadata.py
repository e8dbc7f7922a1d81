"""What an exported file says of itself: one JSON text inside it, whatever the format. Imports no torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from semflow.errors import CheckpointError

__all__ = ["EXPORT_FORMAT", "KEY", "InputType", "Metadata", "read_metadata", "shareable"]

EXPORT_FORMAT = 1
"""Of inputs, outputs and metadata: a reader takes its own number and no other."""

KEY = "semflow"
"""The name that the text has in a file."""

LARGEST_TEXT, LARGEST_SIDE = 2**20, 2**14

InputType = Literal["uint8", "float32"]


@dataclass(frozen=True)
class Metadata:
    """What `semflow predict` and other users of an exported file need beside its graph.

    Args:
        recipe, arguments: what the detector was built from; empty for one of your own.
        image_size: side of the square images that the graph takes.
        input: their type: uint8 from 0 to 255, or float32 from 0 to 1.
        map_range: the colour range of anomaly maps.
        localizes: whether the anomaly map says where.
        outputs: the names of the graph's results, in their order.
        calibration: what is known of the calibration: empty where there is none.
        versions: of semflow and of what made the file.
        format: `EXPORT_FORMAT` of the version that wrote it.

    Example:
        >>> said = Metadata("sanflow", {"blocks": 4}, 256, "uint8", (0.0, 3.0), True, ("score", "anomaly_map"))
        >>> json.loads(said.to_json())["outputs"]
        ['score', 'anomaly_map']
    """

    recipe: str
    arguments: dict[str, Any]
    image_size: int
    input: InputType
    map_range: tuple[float, float]
    localizes: bool
    outputs: tuple[str, ...]
    calibration: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = EXPORT_FORMAT

    def to_json(self) -> str:
        """The text that goes into the file."""
        return json.dumps(asdict(self))


def read_metadata(text: str | None, path: Path) -> Metadata:
    """The metadata that a file holds.

    Args:
        text: what stands under `KEY`; None where there is no such entry.
        path: the file, for the error.

    Raises:
        CheckpointError: there is none, it is broken, or it is of another version.

    Example:
        >>> read_metadata('{"format": 7}', Path("a.onnx"))
        Traceback (most recent call last):
        ...
        semflow.errors.CheckpointError: a.onnx: exported by another version of semflow, expected export format 1 but ...
    """
    if text is None:
        raise CheckpointError(f"{path}: expected a model that semflow export has made, but it has no entry {KEY!r}")
    try:
        if len(text) > LARGEST_TEXT:
            raise ValueError("too large")
        content = json.loads(text)
        found = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: broken, expected JSON in its entry {KEY!r}; export the model again") from error
    if found != EXPORT_FORMAT:
        raise CheckpointError(
            f"{path}: exported by another version of semflow, expected export format {EXPORT_FORMAT} but got "
            f"{str(found)[:40]}; export the model again"
        )
    known = {entry.name for entry in fields(Metadata)}
    try:
        made = Metadata(**{name: value for name, value in content.items() if name in known})
        _check(made)
        low, high = (float(x) for x in made.map_range)
        return Metadata(**{**asdict(made), "map_range": (low, high), "outputs": tuple(made.outputs)})
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: broken, its entry {KEY!r} lacks values; export the model again") from error


def _check(made: Metadata) -> None:
    """Raise ValueError for what `Metadata` would not have written: files come from strangers."""
    rate = made.calibration.get("false_alarm_rate") if isinstance(made.calibration, dict) else None
    outputs = [name for name in made.outputs if isinstance(name, str)]
    decided = {"p_value", "is_anomalous", "mask"}
    if not (
        type(made.format) is type(made.image_size) is int
        and 1 <= made.image_size <= LARGEST_SIDE
        and made.input in get_args(InputType)
        and len(made.map_range) == 2
        and all(type(x) in (int, float) and math.isfinite(x) for x in made.map_range)
        and made.map_range[0] <= made.map_range[1]
        and type(made.localizes) is bool
        and isinstance(made.recipe, str)
        and isinstance(made.arguments, dict)
        and isinstance(made.versions, dict)
        and isinstance(made.outputs, list | tuple)
        and len(set(outputs)) == len(made.outputs)
        and {"score", "anomaly_map"} <= set(outputs)
        and (decided if made.calibration else set()) == decided & set(outputs)
        and (made.calibration == {} or (type(rate) is float and 0 < rate < 1))
    ):
        raise ValueError("a value of another type or range")


def shareable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's arguments as others may see them: of a file of weights its name, and not where it lies.

    Example:
        >>> shareable({"backbone": "resnet18", "weights": "models/mine/resnet18.pth"})
        {'backbone': 'resnet18', 'weights': 'resnet18.pth'}
    """
    given = dict(arguments)
    if isinstance(given.get("weights"), str):
        given["weights"] = given["weights"].replace("\\", "/").rpartition("/")[2]
    return given
