"""What a detector keeps of held-out normal images: their scores, from which p-values, decisions and masks come."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from semflow.errors import CheckpointError, ConfigError, ShapeError

from .conformal import FINEST, check_count, conformal_p_values, conformal_threshold, exact_rate, images_needed

__all__ = ["Calibration", "Decision"]


class Decision(NamedTuple):
    """What a calibration says of a batch; all None where there is none.

    Args:
        p_value: (B,) float64.
        is_anomalous: (B,) bool, p_value <= the false-alarm rate.
        mask: (B, H, W) bool, the anomaly map is above its threshold.

    Example:
        >>> Decision(torch.tensor([0.02, 0.4]), torch.tensor([0.02, 0.4]) <= 0.05).is_anomalous
        tensor([ True, False])
    """

    p_value: Tensor | None = None
    is_anomalous: Tensor | None = None
    mask: Tensor | None = None


class Calibration(nn.Module):
    """Scores of held-out normal images, and a false-alarm rate: empty until `fit`, then part of the model's state.

    - Of images: p <= rate, which is score > the ceil((n + 1)(1 - rate))-th smallest calibration score.
    - Of pixels: map > the same order statistic of the calibration images' map maxima. The mask of a normal image is
      empty with probability at least 1 - rate: the pixels of an image depend on each other, images do not, so the
      image is what is counted. A quantile of all pixels pooled has no such guarantee at any number of pixels.

    Both hold on their own: an image may be over one threshold and not the other.

    Example:
        >>> calibration = Calibration()
        >>> calibration.fit(torch.arange(19.0), torch.arange(19.0) * 2, false_alarm_rate=0.1)
        >>> calibration.thresholds.tolist()
        [17.0, 34.0]
        >>> decision = calibration(torch.tensor([3.0, 18.5]), torch.tensor([[[1.0, 40.0]], [[2.0, 3.0]]]))
        >>> decision.p_value.tolist(), decision.is_anomalous.tolist(), decision.mask.tolist()
        ([0.85, 0.05], [False, True], [[[False, True]], [[False, False]]])
        >>> calibration.set_rate(0.05)
        >>> calibration.thresholds.tolist()
        [18.0, 36.0]
    """

    scores: Tensor | None
    maxima: Tensor | None
    rate: Tensor | None
    thresholds: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in ("scores", "maxima", "rate"):
            self.register_buffer(name, None)
        self.register_buffer("thresholds", None, persistent=False)

    @property
    def count(self) -> int:
        """How many images it rests on; 0 where there is none."""
        return 0 if self.scores is None else len(self.scores)

    @property
    def false_alarm_rate(self) -> float | None:
        """The rate that decisions are made at."""
        return None if self.rate is None else self.rate[0].item() / self.rate[1].item()

    def fit(self, scores: Tensor, maxima: Tensor, false_alarm_rate: float | None = None) -> None:
        """Take the scores of normal images that were not trained on.

        Args:
            scores: (n,) image scores.
            maxima: (n,) the highest value of each image's anomaly map.
            false_alarm_rate: None takes the lowest of 1, 5 and 10 % that n allows.

        Raises:
            ConfigError: n is too small for the rate; the message says how many are needed.
            ShapeError: the two are not of one length, or a value is not finite.
        """
        if scores.dim() != 1 or scores.shape != maxima.shape or not len(scores):
            raise ShapeError(
                f"scores and maxima must be (n,), one of each an image, but got {tuple(scores.shape)} "
                f"and {tuple(maxima.shape)}"
            )
        if not (scores.isfinite().all() and maxima.isfinite().all()):
            raise ShapeError("scores and maxima must be finite, but some are not; the model is broken, fit it again")
        exact = exact_rate(check_count(len(scores), false_alarm_rate))  # nothing is changed where it raises
        self.scores, self.maxima = scores.detach().sort().values, maxima.detach().sort().values
        self.rate = torch.tensor([exact.numerator, exact.denominator], device=scores.device)
        self._derive()

    def set_rate(self, false_alarm_rate: float) -> None:
        """Decide at another false-alarm rate; the p-values stay.

        Raises:
            ConfigError: nothing is calibrated, or the rate takes more images.
        """
        if self.scores is None or self.maxima is None:
            raise ConfigError("false_alarm_rate needs a calibrated detector, but this one is not; calibrate it first")
        self.fit(self.scores, self.maxima, false_alarm_rate)

    def clear(self) -> None:
        """Forget everything, as when the scores have changed their meaning."""
        self.scores = self.maxima = self.rate = self.thresholds = None

    def forward(self, score: Tensor, anomaly_map: Tensor) -> Decision:
        """Scores (B,) and maps (B, H, W) to decisions."""
        if self.scores is None or self.thresholds is None:
            return Decision()
        # Not `>`: a value that is not a number is above every threshold.
        image, pixel = self.thresholds
        return Decision(conformal_p_values(self.scores, score), ~(score <= image), ~(anomaly_map <= pixel))

    def make_room(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take the sizes of a calibration that is about to be loaded; where the state has none, forget one's own.

        Raises:
            CheckpointError: it is no calibration that `fit` could have made.
        """
        found = [state.get(prefix + name) for name in ("scores", "maxima", "rate")]
        if all(x is None for x in found):
            return self.clear()
        _check_state(found, prefix)
        like = next(iter(self.buffers()), cast(Tensor, found[0]))
        self.scores, self.maxima, self.rate = (torch.empty_like(cast(Tensor, x), device=like.device) for x in found)
        return None

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: object) -> None:
        self.make_room(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.scores is not None:
            self._derive()

    def _derive(self) -> None:
        scores, maxima, rate = (cast(Tensor, x) for x in (self.scores, self.maxima, self.rate))
        value = rate[0].item() / rate[1].item()
        self.thresholds = torch.stack([conformal_threshold(x, value) for x in (scores, maxima)])

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.count} images, false_alarm_rate={self.false_alarm_rate}" if self.count else "none"


def _check_state(found: Sequence[Tensor | None], prefix: str) -> None:
    """Raise CheckpointError for anything that is no calibration: files come from strangers."""
    scores, maxima, rate = found
    again = "calibrate the model again"
    if scores is None or maxima is None or rate is None:
        raise CheckpointError(
            f"{prefix}scores, {prefix}maxima and {prefix}rate belong together, but some lack; {again}"
        )
    if (
        scores.dim() != 1
        or scores.shape != maxima.shape
        or not (scores.is_floating_point() and maxima.dtype == scores.dtype)
    ):
        raise CheckpointError(
            f"{prefix}scores and {prefix}maxima must be (n,) of one float type, but got {tuple(scores.shape)} of "
            f"{scores.dtype} and {tuple(maxima.shape)} of {maxima.dtype}; {again}"
        )
    if not (scores.isfinite().all() and maxima.isfinite().all()):
        raise CheckpointError(f"{prefix}scores and {prefix}maxima must be finite, but some are not; {again}")
    if tuple(rate.shape) != (2,) or rate.dtype != torch.int64 or not 0 < rate[0].item() < rate[1].item() <= FINEST:
        raise CheckpointError(f"{prefix}rate must be a fraction of two whole numbers, but is not; {again}")
    if len(scores) < images_needed(rate[0].item() / rate[1].item()):
        raise CheckpointError(f"{prefix}scores are too few for {prefix}rate; {again}")
