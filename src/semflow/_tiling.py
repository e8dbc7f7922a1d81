"""Tiles of an image: where they lie, and how their maps become the map of the image. Imports no torch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semflow._validation import Settings
from semflow.errors import ConfigError

Array = NDArray[Any]

AT_ONCE = 2**19
"""Pixels of the tiles that are predicted together: two of 512 x 512."""
LARGEST_SIDE = 2**14


@dataclass(frozen=True)
class Tiles(Settings):
    """Square tiles that cover an image of any size, so that small defects are seen at full resolution.

    Neighbors overlap, and the last tile of a row or column ends at the border. Maps of tiles are blended: the weight of
    a tile falls linearly over the overlap. An image that is smaller than a tile is continued by reflection. The score
    of an image is the highest of its tiles, computed as for an image of that size.

    Args:
        size: Side of a tile in pixels, the `image_size` of the detector.
        overlap: Pixels that neighbors share at least, up to half of the size; None takes an eighth.

    Example:
        >>> tiles = Tiles(512, overlap=64)
        >>> tiles.starts(1000), len(tiles.places(3000, 4000))
        ([0, 448, 488], 63)
    """

    size: int
    overlap: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.size <= LARGEST_SIDE:
            raise ConfigError(f"size of tiles must be between 1 and {LARGEST_SIDE} pixels, but got {self.size}")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.size // 8)
        if not 0 <= self.shared <= self.size // 2:
            raise ConfigError(
                f"overlap of tiles must be between 0 and half of their size, {self.size // 2} pixels, but got "
                f"{self.overlap}"
            )

    @property
    def shared(self) -> int:
        """Pixels that neighbors share at least."""
        return self.overlap or 0

    def as_dict(self) -> dict[str, int]:
        """Return the fields by name."""
        return asdict(self)

    def starts(self, length: int) -> list[int]:
        """Return the first pixel of each tile along a side of an image."""
        last = max(0, length - self.size)
        return [*range(0, last, self.size - self.shared), last]

    def places(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the first row and column of each tile of an image, row by row."""
        return [(top, left) for top in self.starts(height) for left in self.starts(width)]

    def cut(self, image: Array, place: tuple[int, int]) -> Array:
        """Return one tile (..., size, size) of an image (..., H, W); a view unless the image is smaller.

        Example:
            >>> Tiles(4, 0).cut(np.arange(3)[None], (0, 0))[0]
            array([0, 1, 2, 1])
        """
        top, left = place
        tile = image[..., top : top + self.size, left : left + self.size]
        for axis, length in ((-2, image.shape[-2]), (-1, image.shape[-1])):
            if length < self.size:
                tile = np.take(tile, _reflected(length, self.size), axis)
        return tile

    def batches(self, image: Array) -> Iterator[Array]:
        """Yield all tiles of an image (C, H, W) in batches (B, C, size, size) of at most `AT_ONCE` pixels each."""
        places = self.places(*image.shape[-2:])
        count = max(1, AT_ONCE // self.size**2)
        for start in range(0, len(places), count):
            yield np.stack([self.cut(image, place) for place in places[start : start + count]])

    def blend(self, maps: Iterable[Array], height: int, width: int) -> Array:
        """Return the map (height, width) of an image from the maps (size, size) of all its tiles, in order.

        Example:
            >>> tiles, image = Tiles(8, 3), np.arange(150.0).reshape(10, 15)
            >>> parts = [tiles.cut(image, place) for place in tiles.places(10, 15)]
            >>> bool(np.allclose(tiles.blend(parts, 10, 15), image))
            True
        """
        rows, columns = self._shares(height), self._shares(width)
        whole: Array = np.zeros(0)
        for (top, left), tile in zip(self.places(height, width), maps, strict=True):
            if not whole.size:  # the first tile
                whole = np.zeros((max(height, self.size), max(width, self.size)), tile.dtype)
            share = (rows[top][:, None] * columns[left]).astype(tile.dtype)
            whole[top : top + self.size, left : left + self.size] += share * tile
        return whole[:height, :width]

    def predict(self, image: Array, predict: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
        """Return score () and map (H, W) of an image (C, H, W).

        The batches of tiles depend on the size of the image alone, so rounding does, too.

        Args:
            image: The image.
            predict: Computes the scores (B,) and maps (B, size, size) of a batch of tiles.
        """
        scores: list[Array] = []

        def maps() -> Iterator[Array]:
            for batch in self.batches(image):
                score, found = predict(batch)
                scores.append(score)
                yield from found

        whole = self.blend(maps(), *image.shape[-2:])
        return np.concatenate(scores).max(), whole

    def _shares(self, length: int) -> dict[int, NDArray[np.float64]]:
        """Return the share of each tile, by its first pixel, in the pixels along a side; they sum to one everywhere."""
        ramp = np.arange(1, self.size + 1)
        profile = np.minimum(np.minimum(ramp, ramp[::-1]), self.shared + 1).astype(np.float64)
        total = np.zeros(max(length, self.size))
        for start in self.starts(length):
            total[start : start + self.size] += profile
        return {start: profile / total[start : start + self.size] for start in self.starts(length)}


def _reflected(length: int, size: int) -> NDArray[np.int64]:
    """Return the pixels of a side that is continued by reflection, as often as needed.

    >>> _reflected(3, 8).tolist()
    [0, 1, 2, 1, 0, 1, 2, 1]
    """
    period = max(1, 2 * (length - 1))
    folded = np.arange(size) % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros(size, dtype=np.int64)
