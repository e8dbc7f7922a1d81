"""Watch over the optimizer steps: clipped gradients, and losses and gradients that are not finite."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from semflow.errors import TrainingError


class Watch:
    """Clips gradients, counts clipped steps, and raises at the first loss or gradient that is not finite.

    Reading values waits for the device, so on GPUs it happens only once per `every` steps, and before anything is
    saved. With `every=1` the weights stay as they were before the step.

    Args:
        clip: largest norm of a gradient; None disables clipping.
        every: steps between two checks.
        advice: returns the end of error messages.
    """

    def __init__(self, clip: float | None = None, every: int = 1, advice: Callable[[], str] = lambda: "") -> None:
        self.clip, self.every, self.advice, self.steps = clip, every, advice, 0
        self.where = ""
        self.clipped, self.largest = 0, 0.0  # of the steps that have been checked
        self._unchecked: list[Tensor] = []

    def step(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """Clip the gradients of the parameters before an optimizer step."""
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if self.clip is None else self.clip)
        self.steps += 1
        self._unchecked.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        if len(self._unchecked) >= self.every:
            self.check()

    def check(self) -> None:
        """Raise TrainingError if the loss or the norm of the gradient was not finite in one of the steps so far."""
        if not self._unchecked:
            return
        first, values = self.steps - len(self._unchecked) + 1, torch.stack(self._unchecked).tolist()
        self._unchecked.clear()
        for number, (loss, norm) in enumerate(values, first):
            at = f"at step {number}{self.where}"
            if not math.isfinite(loss):
                raise TrainingError(
                    f"loss must be finite, but got {loss} {at}, with a gradient of norm {norm:.5g}{self.advice()}"
                )
            if not math.isfinite(norm):
                raise TrainingError(
                    f"gradient must have a finite norm, but got {norm} {at}, with a loss of {loss:.5g}{self.advice()}"
                )
            self.clipped += self.clip is not None and norm > self.clip
            self.largest = max(self.largest, norm)

    def begin(self, where: str = "", steps: int = 0, clipped: int = 0, largest: float = 0.0) -> None:
        """Restart the counts, from zero or from a checkpoint; `where` follows the step's number in messages."""
        self.check()
        self.where, self.steps, self.clipped, self.largest = where, steps, clipped, largest
