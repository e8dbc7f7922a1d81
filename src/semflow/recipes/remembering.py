"""A memory in the place of the base of a trained detector."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch.utils.data import Dataset

from semflow._validation import Settings
from semflow.bases import Memory
from semflow.detectors import Detector
from semflow.training import refit

from .settings import NONE, plain_settings


@dataclass(frozen=True)
class StoredMemory(Settings):
    """Memory of normal latents, one per scale.

    Args:
        form: density or distance, see `semflow.bases.Memory`.
        neighbors: see `semflow.bases.Memory`.
        size: number of stored vectors per scale, or their share of all; None stores all.
        space: see `semflow.bases.Memory`.
        projection: see `semflow.bases.Memory`.
        log_det: score log p of the features, with the log-det of flows of event `"location"`.
        seed: seed of the choice of vectors.

    Example:
        >>> StoredMemory("distance", size=0.1).base()
        Memory(
          distance, neighbors=1, size=0.1, space=features, vectors=(0, 0)
          (prior): StandardNormal()
        )
    """

    form: Literal["nearest", "kernel", "distance"] = "nearest"
    neighbors: int = 1
    size: int | float | None = 8000
    space: Literal["latents", "features"] = "features"
    projection: int | None = None
    log_det: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.base()  # checks the ranges

    def base(self) -> Memory:
        """Return an empty memory."""
        return Memory(
            self.form, neighbors=self.neighbors, size=self.size, space=self.space, projection=self.projection,
            seed=self.seed,
        )  # fmt: skip


def remember(
    detector: Detector, dataset: Dataset[Any], memory: StoredMemory = StoredMemory(), **options: Any
) -> Detector:
    """Replace the base of a trained detector by memories of normal latents, and return it in eval mode.

    The flow stays as it is. `save` and `load` keep the memories.

    Args:
        detector: detector of any recipe; it is changed in place.
        dataset: normal images.
        memory: what is stored, and how it is compared.
        options: options of `semflow.training.refit`, such as `calibration`.

    Example:
        >>> import torch
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(4)]
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> remember(detector, good, StoredMemory(size=0.5)).bases[0].vectors.shape
        torch.Size([32, 32])
    """
    attach(detector, memory)
    return refit(detector, dataset, **options)


def attach(detector: Detector, memory: StoredMemory) -> None:
    """Put empty memories in the place of a detector's base, and record them in its provenance."""
    bases = [memory.base() for _ in detector.flows.events]
    for scale, base in enumerate(bases):
        base.prior = copy.deepcopy(detector.training_base(scale))
    detector.set_base(bases)
    detector.to(detector.device)
    detector.score_log_det = memory.log_det
    detector.scorer.fixed = False  # a constant of another base
    detector.calibration.clear()
    recorded = plain_settings({"memory": memory})["memory"]
    detector.provenance = replace(detector.provenance, memory=recorded)


def stored_memory(settings: Mapping[str, Any]) -> StoredMemory:
    """Return the memory of recorded settings.

    >>> stored_memory({"size": "none"}).size is None
    True
    """
    values: dict[str, Any] = {name: None if value == NONE else value for name, value in settings.items()}
    return StoredMemory(**values)
