"""Normal images and synthetic anomalies in equal parts, as a map-style data set."""

from collections.abc import Sized
from typing import Protocol, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._validation import at_least, checked
from semflow.errors import ConfigError, DataError

from .cutpaste import CutPaste

__all__ = ["SampleLike", "SyntheticAnomalies"]


class SampleLike(Protocol):
    """What an item of the wrapped data set must offer: a named tuple with these fields does."""

    @property
    def image(self) -> Tensor:
        """(3, H, W), float32 in [0, 1]."""

    def _replace(self, *, image: Tensor = ..., label: int = ..., anomaly_mask: Tensor | None = ...) -> Self:
        """A copy with some fields changed."""


S = TypeVar("S", bound=SampleLike)
_DEFAULT = CutPaste()


class SyntheticAnomalies(Dataset[S]):
    """The positions of an epoch over a data set of normal images, some of them with a pasted anomaly.

    Position p of epoch e holds image perm_e[p] and kind (normal, *kinds)[(p + e) mod n], n = 1 + len(kinds): any n
    consecutive positions, and so any batch of a multiple of n, hold each kind once. Everything at position p is drawn
    from `numpy.random.default_rng((seed, e, p))`: the same tensors whatever the number of workers. The positions are
    already shuffled, so give it to a DataLoader with `shuffle=False`.

    Args:
        dataset: normal images, a map-style data set of named tuples with fields image, label and anomaly_mask.
        cut_paste: the kinds of anomalies and how patches are made; None leaves all images normal.
        normal: whether unchanged images are one of the parts.
        seed: a whole number, not negative.

    >>> from typing import NamedTuple
    >>> class Item(NamedTuple):
    ...     image: Tensor
    ...     label: int = 0
    ...     anomaly_mask: Tensor | None = None
    >>> images = [Item(torch.full((3, 64, 64), k / 10)) for k in range(8)]
    >>> epoch = SyntheticAnomalies(images, seed=1)
    >>> [epoch[p].label for p in range(8)]
    [0, 1, 1, 1, 0, 1, 1, 1]
    >>> epoch.set_epoch(1)
    >>> [epoch.kind(p) for p in range(4)]
    ['small', 'medium', 'circle', 'normal']
    """

    @checked
    def __init__(
        self, dataset: Dataset[S], cut_paste: CutPaste | None = _DEFAULT, *, normal: bool = True, seed: int = 0
    ) -> None:
        kinds = () if cut_paste is None else cut_paste.kinds
        if not kinds and not normal:
            raise ConfigError("normal must be True without cut_paste, but got False")
        at_least(0, seed=seed)
        if len(cast(Sized, dataset)) == 0:
            raise DataError("dataset must hold at least one image, but got none")
        self.dataset, self.seed, self.cut_paste = dataset, seed, cut_paste or _DEFAULT
        self.parts = (("normal",) if normal else ()) + kinds
        # In shared memory, so that persistent workers see a new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def epoch(self) -> int:
        """The epoch that items are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; call it before the DataLoader's iterator is made."""
        if epoch < 0:
            raise ConfigError(f"epoch must be at least 0, but got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def kind(self, position: int) -> str:
        """What position `position` of the epoch holds: "normal" or a kind of anomaly."""
        return self.parts[(position + self.epoch) % len(self.parts)]

    def index(self, position: int) -> int:
        """Which image of the wrapped data set position `position` of the epoch holds."""
        return self._permutation()[position]

    def __getitem__(self, position: int) -> S:
        count = len(self)
        if not -count <= position < count:
            raise IndexError(f"position must be from -{count} to {count - 1}, but got {position}")
        position %= count
        index = self.index(position)
        sample, kind = self.dataset[index], self.kind(position)
        if kind == "normal":
            nothing = torch.zeros(sample.image.shape[-2:], dtype=torch.bool)
            return sample._replace(label=0, anomaly_mask=nothing)
        rng = np.random.default_rng((self.seed, self.epoch, position))
        # A step of 1 to count - 1 around the circle of indices: uniform over all images but this one.
        other = (index + int(rng.integers(1, count))) % count if count > 1 else index
        image, anomaly_mask = self.cut_paste(sample.image, self.dataset[other].image, kind, rng)
        return sample._replace(image=image, label=1, anomaly_mask=anomaly_mask)

    def _permutation(self) -> list[int]:
        epoch, order = self._order
        if epoch != self.epoch:
            # The third word is no position's: `default_rng((s, e))` would equal `default_rng((s, e, 0))`.
            epoch = self.epoch
            order = np.random.default_rng((self.seed, epoch, len(self))).permutation(len(self)).tolist()
            self._order = (epoch, order)
        return order
