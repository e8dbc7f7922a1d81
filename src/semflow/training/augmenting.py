"""Changed copies of normal images, for bases that are fitted in one pass."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from semflow.detectors import Detector, NormalBatch
from semflow.errors import ConfigError
from semflow.synthesis import augment

from .regions import with_region

COPIES = 4


class Copies:
    """Batches of changed copies of a batch's images, in their regions of interest; none without names.

    The copies depend on the seed and on the place of an image in its data set.
    """

    def __init__(self, detector: Detector, names: Sequence[str], seed: int) -> None:
        check_copies(detector, names)
        self.region, self.names, self.seed = detector.region, tuple(names), seed

    def __call__(self, batch: NormalBatch) -> Iterator[Tensor]:
        """Yield copies of the images of a batch."""
        if not self.names:
            return
        images, places = batch.images.cpu(), cast(Tensor, batch.indices).tolist()
        if self.region is not None:
            images = with_region(images, self.region.cpu())
        for copy in range(COPIES):
            draws = [np.random.default_rng((self.seed, copy, place, 4)) for place in places]
            changed = [augment(image, self.names, rng) for image, rng in zip(images, draws, strict=True)]
            yield torch.stack(changed).to(batch.images.device)


def check_copies(detector: Detector, names: Sequence[str]) -> None:
    """Raise ConfigError if images are to be changed that a base needs where they are.

    >>> from semflow.recipes import Backbone, padim
    >>> check_copies(padim(Backbone("test_efficientnet", "random", (4, 8, 16)), 32), ("rotate",))
    Traceback (most recent call last):
        ...
    semflow.errors.ConfigError: augment must be empty for a PositionGaussian, which has a distribution at every ...
    """
    for base in detector.fitted_bases.values() if names else ():
        if base.by_location:
            raise ConfigError(
                f"augment must be empty for a {type(base).__name__}, which has a distribution at every location, but "
                f"got {', '.join(names)}; take another recipe"
            )
