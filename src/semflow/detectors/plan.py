"""A training plan: what a recipe says of its optimiser and schedule."""

import math
from dataclasses import dataclass
from typing import Literal

from semflow._validation import check_arguments
from semflow.errors import ConfigError

__all__ = ["Training"]


@dataclass(frozen=True)
class Training:
    """How a detector is trained; recipes bring the values of their papers.

    Args:
        epochs: passes over the training images.
        batch_size: images a step; a multiple of 4 holds normal images and the three kinds of anomalies in equal parts.
        learning_rate: of Adam.
        schedule: `constant`, or `cosine`: up from a tenth over the first tenth of the steps, then down to a thousandth.
        weight_decay: of Adam (L2).
        locations: locations a step, drawn at random from a batch, see `train_on_batch`; None takes whole maps.
        clip: largest norm of a step's gradient; None leaves it as it is. The default is out of the way of healthy runs
            (norms of 0.5 to 700); it keeps one step from spoiling Adam's mean squares for the next thousand.
        seed: of the synthetic anomalies and the order of images.

    Example:
        >>> plan = Training(epochs=20, learning_rate=1e-3)
        >>> plan.epochs, plan.batch_size, plan.schedule
        (20, 8, 'cosine')
    """

    epochs: int = 80
    batch_size: int = 8
    learning_rate: float = 5e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    locations: int | None = None
    clip: float | None = 1e4
    seed: int = 0

    def __post_init__(self) -> None:
        check_arguments(Training.__init__, vars(self))
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, but got {getattr(self, name)}")
        if self.locations is not None and self.locations < 1:
            raise ConfigError(f"locations must be at least 1, or None for whole maps, but got {self.locations}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be a positive norm, or None, but got {self.clip}")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay must be 0 or more, but got {self.weight_decay}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, but got {self.learning_rate}")
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(f"schedule must be constant or cosine, but got {self.schedule!r}")

    def learning_rate_at(self, done: float) -> float:
        """The learning rate when a fraction `done` of the steps has been taken.

        Example:
            >>> plan = Training(learning_rate=1.0)
            >>> [round(plan.learning_rate_at(t), 3) for t in (0.0, 0.1, 1.0)]
            [0.1, 0.976, 0.001]
        """
        if self.schedule == "constant":
            return self.learning_rate
        cosine = 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * cosine * min(1.0, 0.1 + 9 * done)
