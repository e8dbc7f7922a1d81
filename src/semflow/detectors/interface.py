"""Predictions of a detector, and the record of how it was made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from semflow._tiling import Tiles
from semflow._validation import Size
from semflow.synthesis import CutPaste, Poisson


class NormalBatch(NamedTuple):
    """Batch of normal images.

    Args:
        images: (B, C, H, W) in [0, 1], see `Sample`.
        maps: their feature maps, one per scale; None if they are not known.
        indices: (B,) int64, the place of each image in the data set, the same for all tiles of an image; None for
            batches in its order.
        latents: their latents, see `Detector.encode`; None if they are not known.

    Example:
        >>> NormalBatch(torch.rand(2, 3, 64, 64), indices=torch.tensor([4, 5])).maps is None
        True
    """

    images: Tensor
    maps: Sequence[Tensor] | None = None
    indices: Tensor | None = None
    latents: Sequence[Any] | None = None


ImageBatch = Tensor | tuple[Tensor, Sequence[Tensor]] | NormalBatch
"""Images (B, C, H, W) in [0, 1], see `Sample`, alone, with their feature maps, or with their places."""
Gather = Callable[[Iterable[Any]], Iterable[Any]]
"""Collects the results for each batch from all processes, see `Processes.gather`."""


@dataclass(frozen=True)
class Provenance:
    """Record of how a detector was made, written by recipes and training.

    Args:
        recipe: name of the registered recipe, "" for a detector that was assembled by hand.
        module: module that registers the recipe.
        arguments: the recipe's arguments as plain values, see `semflow.recipes.plain_settings`.
        image_size: side in pixels of the images that the detector was made for, or (height, width).
        resize: how images of other proportions are brought to this size: `stretch`, or `pad` with a region.
        regions: every image has a region of interest of its own, from a mask.
        training: `semflow.training.TrainingConfig` that `semflow.fit` uses by default.
        synthesis: synthetic anomalies that `semflow.fit` uses by default; None trains on normal images alone.
        fingerprints: one per training image: calibration rejects these images.
        memory: settings of a memory that replaced the recipe's base, see `semflow.recipes.remember`.
        frames: scores of a black, a white, a gray and a noise image after training, each with the fraction of good
            images that score as high.
        calibration: digest of the images of `semflow.calibrate`, `cross` if all images were trained on and calibrated
            on, "" for others.
        categories: names of the categories of the images, if the data set of training or calibration tells them apart.
        tiles: tiles of `image_size` that images of any size are cut into; None for whole images of that size.

    Example:
        >>> Provenance("sanflow", image_size=512).arguments
        {}
    """

    recipe: str = ""
    module: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: Size = 256
    resize: Literal["stretch", "pad"] = "stretch"
    regions: bool = False
    training: Any = None
    synthesis: CutPaste | Poisson | None = None
    fingerprints: tuple[str, ...] = ()
    memory: Mapping[str, Any] | None = None
    calibration: str = ""
    frames: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tiles: Tiles | None = None
    categories: tuple[str, ...] = ()

    @property
    def loaded_size(self) -> Size | None:
        """Size in pixels to which images are resized, or None for their own size, with tiles."""
        return self.image_size if self.tiles is None else None

    @property
    def channels(self) -> int:
        """Channels of color images: 4 if they have a region; gray ones have two less."""
        return 4 if self.regions or self.resize == "pad" else 3

    def __deepcopy__(self, memo: object) -> "Provenance":
        """Return the same record, which never changes."""
        return self


class Prediction(NamedTuple):
    """Predictions for a batch of images; the last three are None if the detector is not calibrated.

    Args:
        score: (B,), higher is more anomalous.
        anomaly_map: (B, H, W) at the size of the images; -inf outside the region of interest.
        variance: one map (B, H_k, W_k) per scale; empty if the base has no statistics, and with tiles.
        p_value: (B,) float64, the probability that a normal image has such a score.
        is_anomalous: (B,) bool, true if the p-value is at most the false-alarm rate.
        mask: (B, H, W) bool, true where the anomaly map is above its threshold.

    Example:
        >>> Prediction(torch.tensor([0.3, 2.1]), torch.rand(2, 64, 64), ()).is_anomalous is None
        True
    """

    score: Tensor
    anomaly_map: Tensor
    variance: tuple[Tensor, ...]
    p_value: Tensor | None = None
    is_anomalous: Tensor | None = None
    mask: Tensor | None = None


class Predictor(Protocol):
    """Interface that evaluation and the command line need: a `Detector` or a `semflow.app.export.ExportedDetector`."""

    @property
    def provenance(self) -> Provenance:
        """Origin of the detector, with the size of its images in pixels."""

    @property
    def map_range(self) -> tuple[float, float]:
        """Color range for anomaly maps: values of the last uncolored pixel and of the last color."""

    @property
    def localizes(self) -> bool:
        """True if the anomaly map tells where."""

    @property
    def device(self) -> torch.device:
        """Device of the images."""

    @property
    def false_alarm_rate(self) -> float | None:
        """False-alarm rate of decisions, or None without calibration."""

    @property
    def calibration_images(self) -> int:
        """Number of calibration images, 0 without calibration."""

    def predict(self, images: Tensor) -> Prediction:
        """Predict images (B, C, H, W) in [0, 1], see `Sample`; of any size with tiles."""
