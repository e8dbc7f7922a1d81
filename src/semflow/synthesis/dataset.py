"""Dataset of normal images and synthetic anomalies in equal parts."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._channels import has_region, in_color
from semflow._validation import at_least, checked
from semflow.errors import ConfigError, DataError
from semflow.functional import hide

from .augmentation import augment, check_augment
from .cutpaste import CutPaste

S = TypeVar("S")
_DEFAULT = CutPaste()
_ATTEMPTS = 10


@runtime_checkable
class Synthesis(Protocol):
    """Interface of all kinds of synthesis: `synthesis(image, donor, kind, rng) -> (image, anomaly_mask)`."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of anomalies to use in equal parts."""
        ...

    def __call__(self, image: Tensor, donor: Tensor, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a copy of `image` (3, H, W) with an anomaly of one kind, and its mask (H, W)."""
        ...


def synthesize(
    synthesis: Synthesis, image: Tensor, donor: Tensor, kind: str, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Apply a synthesis to an image (C, H, W), inside its region if it has one; return it with the mask.

    A gray image becomes RGB, since an anomaly may have color. An anomaly lies in the frame of the region, at least half
    of it inside if ten attempts allow it, and is cut off at the border. The colors outside are not used.

    Example:
        >>> image = torch.rand(4, 64, 64)
        >>> image[3] = torch.ones(64, 64).tril()
        >>> changed, anomaly_mask = synthesize(CutPaste(), image, image.flip(1), "small", np.random.default_rng(0))
        >>> changed.shape, bool((anomaly_mask & (image[3] == 0)).any())
        (torch.Size([4, 64, 64]), False)
    """
    image, donor = in_color(image), in_color(donor)
    if not has_region(len(image)):
        return synthesis(image, donor, kind, rng)
    inside = image[3] > 0.5
    rows, columns = (inside.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    first, second = (hide(x[:3], x[3] > 0.5)[box].contiguous() for x in (image, donor))
    best = torch.zeros(first.shape[1:], dtype=torch.bool)
    pasted = first
    for _ in range(_ATTEMPTS):
        tried, mask = synthesis(first, second, kind, rng)
        within = mask & inside[box[1:]]
        if within.sum() >= best.sum():
            pasted, best = tried, within
        if 2 * within.sum() >= mask.sum():
            break
    changed, anomaly_mask = image.clone(), torch.zeros_like(inside)
    changed[:3][box] = torch.where(best, pasted, image[:3][box])
    anomaly_mask[box[1:]] = best
    return changed, anomaly_mask


class SyntheticAnomalies(Dataset[S]):
    """Dataset of the positions of an epoch over normal images, some of them with a pasted anomaly.

    Position p of epoch e has image perm_e[p] and kind (normal, *kinds)[(p + e) mod n] with n = 1 + len(kinds): any n
    consecutive positions, and so any batch of a multiple of n, contain equal numbers of each kind. All draws for
    position p come from `numpy.random.default_rng((seed, e, p))`, so the tensors do not depend on the number of
    workers. The positions are already shuffled, so use a DataLoader with `shuffle=False`.

    Args:
        dataset: Map-style dataset of normal images: named tuples with fields image, label and anomaly_mask.
        cut_paste: Kinds of anomalies and their options, see `Synthesis`; None leaves all images normal.
        normal: True if unchanged images are one of the parts.
        seed: Seed of at least 0.
        augment: Names of random changes of each image in each epoch, before anomalies are pasted, see `AUGMENTATIONS`.

    Example:
        >>> from typing import NamedTuple
        >>> class Item(NamedTuple):
        ...     image: torch.Tensor
        ...     label: int = 0
        ...     anomaly_mask: torch.Tensor | None = None
        >>> images = [Item(torch.full((3, 64, 64), k / 10)) for k in range(8)]
        >>> epoch = SyntheticAnomalies(images, seed=1)
        >>> [epoch[p].label for p in range(8)]
        [0, 1, 1, 1, 0, 1, 1, 1]
    """

    @checked
    def __init__(
        self,
        dataset: Dataset[S],
        cut_paste: Synthesis | None = _DEFAULT,
        *,
        normal: bool = True,
        seed: int = 0,
        augment: Sequence[str] | str = (),
    ) -> None:
        if isinstance(cut_paste, type) or not isinstance(cut_paste, Synthesis | None):
            raise ConfigError(f"cut_paste must be an object such as CutPaste() or None, but got {cut_paste!r}")
        kinds = () if cut_paste is None else cut_paste.kinds
        if not kinds and not normal:
            raise ConfigError("normal must be True without cut_paste, but got False")
        at_least(0, seed=seed)
        self.dataset: Any = dataset
        self.augment = check_augment(augment)
        if not len(self):
            raise DataError("dataset must contain at least one image, but got none")
        self.seed, self.cut_paste = seed, cut_paste or _DEFAULT
        self.parts = (("normal",) if normal else ()) + kinds
        # In shared memory, so that persistent workers see a new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def epoch(self) -> int:
        """Current epoch."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; call this before creating the iterator of the DataLoader."""
        at_least(0, epoch=epoch)
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def kind(self, position: int) -> str:
        """Return "normal" or the kind of anomaly at a position of the epoch."""
        return self.parts[(position + self.epoch) % len(self.parts)]

    def index(self, position: int) -> int:
        """Return the index in the wrapped dataset of the image at a position of the epoch."""
        epoch, order = self._order
        if epoch != self.epoch:
            # The third word differs from every position; without one, the generator would equal that of position 0.
            epoch = self.epoch
            order = np.random.default_rng((self.seed, epoch, len(self))).permutation(len(self)).tolist()
            self._order = (epoch, order)
        return order[position]

    def __getitem__(self, position: int) -> Any:
        count = len(self)
        if not -count <= position < count:
            raise IndexError(f"position must be from -{count} to {count - 1}, but got {position}")
        position %= count
        index = self.index(position)
        sample, kind = self._sample(index), self.kind(position)
        if kind == "normal":
            return sample._replace(label=0, anomaly_mask=torch.zeros(sample.image.shape[-2:], dtype=torch.bool))
        rng = np.random.default_rng((self.seed, self.epoch, position))
        # A cyclic step of 1 to count - 1: uniform over all other images.
        other = (index + int(rng.integers(1, count))) % count if count > 1 else index
        image, anomaly_mask = synthesize(self.cut_paste, sample.image, self._sample(other).image, kind, rng)
        return sample._replace(image=image, label=int(anomaly_mask.any()), anomaly_mask=anomaly_mask)

    def _sample(self, index: int) -> Any:
        """Return an image of the wrapped dataset as it is in this epoch."""
        sample = self.dataset[index]
        if not self.augment:
            return sample
        rng = np.random.default_rng((self.seed, self.epoch, index, 3))
        return sample._replace(image=augment(sample.image, self.augment, rng))
