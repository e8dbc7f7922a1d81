"""Images decoded once, for the detector and for their overlays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from semflow.data import ImageDataset, Sample
from semflow.data.decoding import in_rgb
from semflow.data.resizing import Box, placement
from semflow.errors import DataError

from .views import shown_size


class Loaded(NamedTuple):
    """An image decoded once, for the detector and for its overlay."""

    size: tuple[int, int]
    picture: Image.Image
    pixels: NDArray[np.uint8]
    box: Box


class Images(Dataset[tuple[str, Loaded | str]]):
    """Names of some images of a data set, with the images, or the errors of those that are not readable."""

    def __init__(self, dataset: ImageDataset, images: list[tuple[int, str]]) -> None:
        self.dataset, self.images = dataset, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[str, Loaded | str]:
        index, name = self.images[position]
        try:
            picture = self.dataset.read_image(index)
            pixels = self.dataset.to_pixels(index, picture)
        except DataError as error:
            return name, str(error)
        size = shown_size(*picture.size)
        shown = in_rgb(picture if picture.size == size else picture.resize(size))
        box = placement(picture.size, self.dataset.size_of(picture.size), self.dataset.resize)
        return name, Loaded(picture.size, shown, pixels, box)


class Samples(Dataset[Sample]):
    """Samples of loaded images, made when they are asked for, since images may be large."""

    def __init__(self, images: Sequence[tuple[str, Loaded]]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        name, image = self.images[index]
        return Sample(torch.from_numpy(image.pixels).float().div_(255.0), -1, None, name)
