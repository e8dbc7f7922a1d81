"""Options --tile and --overlap."""

from typing import Protocol

from semflow.data import Tiles
from semflow.detectors import Provenance
from semflow.errors import ConfigError
from semflow.training.holdout import CROSS

from .options import Fit


class WithTiles(Protocol):
    """Options of a command that uses a model."""

    @property
    def tile(self) -> int | None:
        """Value of --tile."""

    @property
    def overlap(self) -> int | None:
        """Value of --overlap."""


def check_tiles(options: WithTiles, provenance: Provenance) -> None:
    """Raise ConfigError unless --tile and --overlap, if they are given, are those of fit."""
    tiles = provenance.tiles
    for name, given, own in (
        ("tile", options.tile, None if tiles is None else tiles.size),
        ("overlap", options.overlap, None if tiles is None else tiles.overlap),
    ):
        if given is not None and given != own:
            expected = "left out for a model that was fitted without tiles" if tiles is None else f"{own}, as in fit"
            raise ConfigError(f"--{name} must be {expected}, but got {given}; fit a model with --{name} {given}")


def tiles_of(options: Fit) -> Tiles | None:
    """Return the tiles of --tile and --overlap."""
    if options.tile is None:
        if options.overlap is not None:
            raise ConfigError(f"--overlap must come with --tile, but got {options.overlap} without")
        return None
    for name, value in (("image-size", options.image_size), ("resize", options.resize)):
        if value is not None:
            raise ConfigError(
                f"--{name} must be left out with --tile, which takes images at their own size, but got {value}"
            )
    if options.region is not None and options.region.is_file():
        raise ConfigError(f"--region must be a folder of masks with --tile, but got the file {options.region}")
    if options.hold_out == CROSS:
        raise ConfigError(f"--hold-out must be a number with --tile, but got {CROSS!r}")
    return Tiles(options.tile, options.overlap)
