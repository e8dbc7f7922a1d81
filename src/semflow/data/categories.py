"""Several categories of a data set as one."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow.errors import ConfigError

from .dataset import ImageDataset
from .walking import PassedOver


class Categories(ImageDataset):
    """The images of several categories, one category after the other.

    Training on it makes one detector for all of them, which is not told the category of an image. Every image counts
    once, so that larger categories have more weight.

    Args:
        parts: Data sets by the names of their categories, of one size and one way of resizing.
        root: Folder of all categories.
        passed_over: What is beside the categories; what the parts have passed over is added.

    Attributes:
        parts: The data sets by name.
        categories: The category of each image. `fit`, `calibrate` and `evaluate` look for this attribute in every data
            set.

    Example:
        >>> from pathlib import Path
        >>> from semflow.data import Record
        >>> names = {"screw": ("a.png", "b.png"), "nut": ("c.png",)}
        >>> parts = {name: ImageDataset([Record(Path(f), 0) for f in files]) for name, files in names.items()}
        >>> Categories(parts).categories
        ('screw', 'screw', 'nut')
    """

    def __init__(
        self,
        parts: Mapping[str, ImageDataset],
        *,
        root: str | PathLike[str] | None = None,
        passed_over: Sequence[PassedOver] = (),
    ) -> None:
        self.parts = dict(parts)
        if not self.parts:
            raise ConfigError("parts must be at least one category, but got none")
        datasets = tuple(self.parts.values())
        first = datasets[0]
        for name, part in self.parts.items():
            for option in ("image_size", "resize"):
                own, expected = getattr(part, option), getattr(first, option)
                if own != expected:
                    raise ConfigError(f"parts must have one {option}, but got {expected} and {own} of {name}")
        super().__init__(
            [record for part in datasets for record in part.records], first.image_size,
            has_masks=all(part.has_masks for part in datasets), root=root, resize=first.resize,
            cache=all(part.cache for part in datasets),
            passed_over=[*passed_over, *(item for part in datasets for item in part.passed_over)],
        )  # fmt: skip
        self.categories = tuple(name for name, part in self.parts.items() for _ in range(len(part)))
        self._datasets = datasets
        self._starts = [0, *np.cumsum([len(part) for part in datasets]).tolist()]
        self.set_regions({path: region for part in datasets for path, region in part.regions.items()})

    def set_regions(self, regions: dict[Path, Path]) -> None:
        """Set the mask of the region of interest of each image, here and in the parts."""
        for dataset in (self, *self._datasets):
            dataset.regions = regions

    def read_image(self, index: int) -> Image.Image:
        """Decode an image of a part."""
        part, own = self._part(index)
        return part.read_image(own)

    def read_mask(self, index: int, image_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Decode a mask of a part; arguments as in `ImageDataset.read_mask`."""
        part, own = self._part(index)
        return part.read_mask(own, image_size)

    def _part(self, index: int) -> tuple[ImageDataset, int]:
        number = bisect_right(self._starts, index) - 1
        return self._datasets[number], index - self._starts[number]
