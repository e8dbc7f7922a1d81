"""Training settings: the optimizer, its schedule, and how synthetic anomalies are marked."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from semflow._validation import Settings, at_least, positive
from semflow.errors import ConfigError


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """Training settings of a detector. Each recipe has the values of its paper as its default.

    Args:
        epochs: passes over the training images; 0 for a detector that is only fitted, without gradient steps.
        batch_size: images per batch. A multiple of 4 holds equal parts of normal images and three kinds of anomalies.
        learning_rate: of Adam.
        schedule: `constant`, or `cosine`: warm up from a tenth over the first tenth of the steps, then decay to a
            thousandth.
        weight_decay: L2 penalty of Adam.
        locations: locations per step, drawn at random from a batch, see `train_on_batch`; None trains on whole maps.
        clip: largest norm of a gradient; None disables clipping. The default does not affect healthy runs (norms of 0.5
            to 700), but keeps one bad step from spoiling Adam's second moments for a thousand steps.
        mask_resize: how masks are resized to a feature map, see `semflow.functional.mask_to_grid`. `max` marks every
            location that an anomaly touches.
        guard: width in locations of the border around an anomaly that training ignores: features there have seen
            the anomaly, but lie outside its mask.
        seed: of the synthetic anomalies and the order of the images.
        steps: smallest number of steps, in place of `epochs`: as many epochs as they take; None for `epochs`.
        tilt: T of a tilted mean of the negative log-likelihood, see `Objective`, in the place of its mean or of a
            squashed one: a small T trains on rare normal structure as much as on common. None for the recipe's loss.
        accumulate: batches per step. The gradient is that of a batch this many times as large, in the memory of one;
            only batch norms outside the variance head see one at a time. It must be 1 with `locations` or `tilt`.
        precision: `bf16` computes the layers of a training step in bfloat16, by `torch.autocast`, on CUDA only.
            Weights, gradients, log-dets and log-probabilities are float32, and so is all that follows the training.

    Example:
        >>> TrainingConfig(epochs=20, learning_rate=1e-3, schedule="constant").learning_rate_at(0.5)
        0.001
    """

    epochs: int = 80
    batch_size: int = 8
    learning_rate: float = 5e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    locations: int | None = None
    clip: float | None = 1e4
    mask_resize: Literal["nearest", "max"] = "max"
    guard: int = 1
    seed: int = 0
    steps: int | None = None
    tilt: float | None = None
    accumulate: int = 1
    precision: Literal["float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, batch_size=self.batch_size, accumulate=self.accumulate)
        at_least(0, epochs=self.epochs, seed=self.seed, guard=self.guard, weight_decay=self.weight_decay)
        positive(learning_rate=self.learning_rate)
        if self.steps is not None:
            at_least(1, steps=self.steps)
        if self.tilt is not None:
            positive(tilt=self.tilt)
        if self.locations is not None:
            at_least(1, locations=self.locations)
        if self.clip is not None:
            positive(clip=self.clip)
        for name in ("locations", "tilt"):
            if self.accumulate > 1 and getattr(self, name) is not None:
                raise ConfigError(f"accumulate must be 1 with {name}, but got {self.accumulate}; set {name} to None")

    @property
    def images_per_step(self) -> int:
        """Number of images of an optimizer step, if there are enough."""
        return self.batch_size * self.accumulate

    def for_images(self, images: int) -> "TrainingConfig":
        """Return the settings with the number of epochs that `steps` takes, if it is given."""
        if self.steps is None:
            return self
        return replace(self, epochs=-(-self.steps // -(-images // self.images_per_step)), steps=None)

    def learning_rate_at(self, done: float) -> float:
        """Return the learning rate after a fraction `done` of all steps."""
        if self.schedule == "constant":
            return self.learning_rate
        cosine = 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * cosine * min(1.0, 0.1 + 9 * done)
