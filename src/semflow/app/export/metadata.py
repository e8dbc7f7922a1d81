"""Metadata of an exported file: one JSON text inside it, in every format. Imports no torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from semflow._tiling import Tiles
from semflow.errors import CheckpointError, ConfigError

EXPORT_FORMAT = 1  # version of inputs, outputs and metadata; other versions are rejected
KEY = "semflow"  # name of the text in a file
LARGEST_TEXT, LARGEST_SIDE = 2**20, 2**14

InputType = Literal["uint8", "float32"]
Precision = Literal["float32", "float16", "bf16", "int8"]


@dataclass(frozen=True)
class Metadata:
    """Properties of an exported detector that its graph does not contain.

    Args:
        recipe: Name of the recipe; "" for other detectors.
        arguments: Arguments of the recipe.
        image_size: Side of the graph's images in pixels, or [height, width].
        input: Type of the images: uint8 from 0 to 255, or float32 from 0 to 1.
        map_range: Color range of anomaly maps.
        localizes: Whether the anomaly map locates anomalies.
        outputs: Names of the graph's results, in order.
        calibration: Properties of the calibration; empty without one.
        resize: How images of other proportions are brought to this size.
        regions: Whether every image has a region of interest of its own; a fourth channel holds it, and what is padded.
        versions: Versions of semflow and of the packages that wrote the file.
        tiles: Size and overlap of the tiles of an image, see `semflow.data.Tiles`; empty for whole images.
        format: `EXPORT_FORMAT` of the version that wrote the file.
        precision: Type in which the weights are stored.

    Example:
        >>> metadata = Metadata("sanflow", {}, 256, "uint8", (0.0, 3.0), True, ("score", "anomaly_map"))
        >>> json.loads(metadata.to_json())["outputs"]
        ['score', 'anomaly_map']
    """

    recipe: str
    arguments: dict[str, Any]
    image_size: int | list[int]
    input: InputType
    map_range: tuple[float, float]
    localizes: bool
    outputs: tuple[str, ...]
    calibration: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    resize: Literal["stretch", "pad"] = "stretch"
    regions: bool = False
    tiles: dict[str, int] = field(default_factory=dict)
    format: int = EXPORT_FORMAT
    precision: Precision = "float32"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        size = self.image_size
        return (
            4 if self.regions or self.resize == "pad" else 3,
            *((size, size) if isinstance(size, int) else (size[0], size[1])),
        )

    def to_json(self) -> str:
        """Return the text for the file."""
        return json.dumps(asdict(self))


def read_metadata(text: str | None, path: Path) -> Metadata:
    """Parse the text under `KEY`, None without such an entry; `path` names the file in errors."""
    if text is None:
        raise CheckpointError(f"{path} must be written by semflow export, but got no entry {KEY!r}")
    try:
        if len(text) > LARGEST_TEXT:
            raise ValueError(f"text must have at most {LARGEST_TEXT} characters, but got {len(text)}")
        content = json.loads(text)
        found = content["format"]
        if found == EXPORT_FORMAT:
            made = Metadata(**{entry.name: content[entry.name] for entry in fields(Metadata) if entry.name in content})
            _check(made)
            low, high = (float(x) for x in made.map_range)
            return replace(made, map_range=(low, high), outputs=tuple(made.outputs))
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(
            f"{path} must have valid metadata in its entry {KEY!r}, but got {str(error)[:80]}; export the model again"
        ) from error
    raise CheckpointError(
        f"{path} must have export format {EXPORT_FORMAT}, but got {str(found)[:40]}; export the model again"
    )


def _check(made: Metadata) -> None:
    """Raise ValueError for types and ranges that `Metadata` never writes: files may come from strangers."""
    rate = made.calibration.get("false_alarm_rate") if isinstance(made.calibration, dict) else None
    count = made.calibration.get("images", 0) if isinstance(made.calibration, dict) else None
    outputs = [name for name in made.outputs if isinstance(name, str)]
    decisions = {"p_value", "is_anomalous", "mask"}
    is_pair = isinstance(made.image_size, list) and len(made.image_size) == 2
    sides: Any = made.image_size if is_pair else [made.image_size]
    valid = {
        "format": type(made.format) is int,
        "image_size": all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides),
        "resize": made.resize in ("stretch", "pad"),
        "regions": type(made.regions) is bool,
        "input": made.input in get_args(InputType),
        "map_range": len(made.map_range) == 2
        and all(type(x) in (int, float) and math.isfinite(x) for x in made.map_range)
        and made.map_range[0] <= made.map_range[1],
        "localizes": type(made.localizes) is bool,
        "recipe": isinstance(made.recipe, str),
        "precision": made.precision in get_args(Precision),
        "arguments": isinstance(made.arguments, dict),
        "versions": isinstance(made.versions, dict),
        "outputs": isinstance(made.outputs, list | tuple)
        and len(set(outputs)) == len(made.outputs)
        and {"score", "anomaly_map"} <= set(outputs)
        and (decisions if made.calibration else set()) == decisions & set(outputs),
        "tiles": made.tiles == {} or _tiles(made.tiles) == made.image_size,
        "calibration": made.calibration == {} or (type(rate) is float and 0 < rate < 1 and type(count) is int),
    }
    for name, fits in valid.items():
        if not fits:
            raise ValueError(f"{name} must be valid, but got {str(getattr(made, name))[:40]}")


def _tiles(found: Any) -> int:
    """Return the size of tiles, 0 for invalid ones."""
    try:
        return Tiles(**found).size
    except (TypeError, ConfigError):
        return 0


def shareable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's arguments without folder names: a file of weights keeps only its name."""
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        given[name] = shareable(value) if isinstance(value, Mapping) else value
        if name == "weights" and isinstance(value, str):
            given[name] = value.replace("\\", "/").rpartition("/")[2]
    return given
