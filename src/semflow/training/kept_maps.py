"""Feature maps of all images: in a temporary file, since they would fill the memory, or on a GPU."""

import itertools
import math
import tempfile
import weakref
from collections.abc import Sequence
from io import FileIO
from typing import Any, cast

import torch
from torch import Tensor

Layout = tuple[tuple[int, ...], torch.dtype]
"""Shape (C, H, W) of the map of one image, and its type."""


class KeptMaps:
    """Feature maps of a number of images at each scale, in channels_last format.

    Args:
        count: number of images.
        layouts: layout of the maps of each scale.
        device: where the maps are returned; on a CPU they are kept in a file without a name, which vanishes with this
            object.

    Attributes:
        lost: True if the file could not be written, such as on a full disk. The maps are then undefined.

    Example:
        >>> kept = KeptMaps(10, [((4, 8, 8), torch.float32)], torch.device("cpu"))
        >>> kept.put(6, [torch.ones(2, 4, 8, 8)])
        >>> [x.mean((1, 2, 3)).tolist() for x in kept.get([7, 0])], kept.lost
        ([[1.0, 0.0]], False)
    """

    def __init__(self, count: int, layouts: Sequence[Layout], device: torch.device) -> None:
        self.layouts, self.device, self.lost = layouts, device, False
        self._file: FileIO | None = None
        self._maps: list[Tensor] = []
        if device.type != "cpu":
            self._maps = [self._empty(count, layout) for layout in layouts]
            return
        sizes = [count * _bytes(layout) for layout in layouts]
        self._starts = [0, *itertools.accumulate(sizes)]
        try:
            self._file = tempfile.TemporaryFile(prefix="semflow-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._file.truncate(self._starts[-1])
        except OSError:
            self._lose()

    def put(self, start: int, maps: Sequence[Tensor]) -> None:
        """Keep the maps of images from one on."""
        for k, x in enumerate(maps):
            if self._maps:
                self._maps[k][start : start + len(x)] = x
            elif self._file is not None:
                values = x.detach().to(self.layouts[k][1]).permute(0, 2, 3, 1).contiguous()
                try:
                    self._seek(k, start)
                    rest = _memory(values)
                    while rest:
                        rest = rest[self._file.write(rest) :]
                except OSError:
                    self._lose()

    def get(self, images: Sequence[int]) -> list[Tensor]:
        """Return the maps of some images."""
        if self._maps:
            index = torch.tensor(images, dtype=torch.int64).to(self.device)
            return [kept[index] for kept in self._maps]
        found, file = [self._empty(len(images), layout) for layout in self.layouts], self._file
        # Images in a row, such as those of a batch, are read at once.
        runs = [list(run) for _, run in itertools.groupby(enumerate(images), lambda pair: pair[1] - pair[0])]
        for k, x in enumerate(found):
            for run in runs if file is not None else ():
                (place, image), length = run[0], len(run)
                self._seek(k, image)
                rest = _memory(x.permute(0, 2, 3, 1)[place : place + length])
                while rest:
                    rest = rest[cast(FileIO, file).readinto(rest) :]
        return found

    def span(self, start: int, stop: int) -> list[Tensor]:
        """Return the maps of images in a row; on a GPU they are views."""
        return [kept[start:stop] for kept in self._maps] or self.get(range(start, stop))

    def _empty(self, count: int, layout: Layout) -> Tensor:
        shape, dtype = layout
        return torch.empty((count, *shape), dtype=dtype, device=self.device, memory_format=torch.channels_last)

    def _seek(self, scale: int, image: int) -> None:
        cast(FileIO, self._file).seek(self._starts[scale] + image * _bytes(self.layouts[scale]))

    def _lose(self) -> None:
        self.lost = True
        if self._file is not None:
            self._file.close()
            self._file = None


def _bytes(layout: Layout) -> int:
    return math.prod(layout[0]) * layout[1].itemsize


def _memory(x: Tensor) -> Any:
    """Return the bytes of a contiguous tensor, which can be written to."""
    return x.flatten().view(torch.uint8).numpy().data
