"""An eye on every step: gradients that are cut to a norm are counted, and what is not finite stops training."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from semflow.errors import TrainingError

__all__ = ["Watch"]


class Watch:
    """Clips the gradients of steps, counts the clipped ones, and raises at the first loss or gradient not finite.

    A look waits for the device, so that elsewhere than on a CPU there is one every so many steps; and one before
    anything is kept, by `look`. With a look at every step the weights stay those of before the step.

    Args:
        clip: largest norm; None counts and clips nothing.
        every: steps between two looks.

    Example:
        >>> watch, weight = Watch(clip=1.0), torch.tensor([3.0, 4.0], requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> watch.step(torch.tensor(0.5), [weight])
        >>> watch.steps, watch.clipped(), round(watch.largest(), 3), round(weight.grad.norm().item(), 3)
        (1, 1, 5.0, 1.0)
        >>> watch.step(torch.tensor(float("nan")), [weight])
        Traceback (most recent call last):
        ...
        semflow.errors.TrainingError: step 2: the loss is nan and the norm of its gradient 1
    """

    def __init__(self, clip: float | None = None, every: int = 1) -> None:
        self.clip, self.every, self.steps = clip, every, 0
        self.where = ""
        self._clipped, self._largest = 0, 0.0
        self._unseen: list[Tensor] = []

    def step(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """A step is about to be taken with the gradients that the parameters have.

        Raises:
            TrainingError: the loss or the norm of the gradient is not finite.
        """
        limit = math.inf if self.clip is None else self.clip
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self.steps += 1
        self._unseen.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        if len(self._unseen) >= self.every:
            self.look()

    def look(self) -> None:
        """Look at all steps so far.

        Raises:
            TrainingError: at one of them something was not finite.
        """
        if not self._unseen:
            return
        first, values = self.steps - len(self._unseen) + 1, torch.stack(self._unseen).tolist()
        self._unseen.clear()
        for number, (loss, norm) in enumerate(values, first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"step {number}{self.where}: the loss is {loss:.5g} and the norm of its gradient {norm:.5g}"
                )
            self._clipped += self.clip is not None and norm > self.clip
            self._largest = max(self._largest, norm)

    def clipped(self) -> int:
        """How many steps had a gradient beyond the norm."""
        self.look()
        return self._clipped

    def largest(self) -> float:
        """The largest norm before clipping."""
        self.look()
        return self._largest

    def begin(self, where: str = "", steps: int = 0, clipped: int = 0, largest: float = 0.0) -> None:
        """Count anew, or from where a checkpoint was written; `where` says of what the steps are."""
        self.look()
        self.where, self.steps, self._clipped, self._largest = where, steps, clipped, largest
