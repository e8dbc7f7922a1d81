"""Calibration: scores of held-out normal images, and the p-values, decisions and masks that follow from them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from semflow._validation import counted
from semflow.errors import CheckpointError, ConfigError, ShapeError

from .conformal import FINEST, check_count, conformal_p_values, conformal_threshold, exact_rate, images_needed

STORED = ("scores", "maxima", "rate", "counts")
"""Names of the tensors in a model's state."""


class Decision(NamedTuple):
    """Decisions for a batch of images; all None without calibration.

    Args:
        p_value: (B,) float64.
        is_anomalous: (B,) bool, p_value <= the false-alarm rate.
        mask: (B, H, W) bool, true where the anomaly map is above its threshold.

    Example:
        >>> Decision(torch.tensor([0.02, 0.4]), torch.tensor([0.02, 0.4]) <= 0.05).is_anomalous
        tensor([ True, False])
    """

    p_value: Tensor | None = None
    is_anomalous: Tensor | None = None
    mask: Tensor | None = None


class Calibration(nn.Module):
    """Scores of held-out normal images and a false-alarm rate; empty until `fit`, then part of the model's state.

    - An image is anomalous if p <= rate, that is, if its score exceeds the ceil((n + 1)(1 - rate))-th smallest
      calibration score.
    - A pixel is anomalous if the map exceeds the same order statistic of the calibration images' map maxima. The mask
      of a normal image is empty with probability at least 1 - rate. A quantile of all pixels would not guarantee
      this, because the pixels of an image are dependent.

    The two are independent: an image may exceed one threshold and not the other.

    With scores of several categories, `choose` takes those of one of them; otherwise all of them count.

    Example:
        >>> calibration = Calibration()
        >>> calibration.fit(torch.arange(19.0), torch.arange(19.0) * 2, false_alarm_rate=0.1)
        >>> calibration.thresholds.tolist()
        [17.0, 34.0]
        >>> decision = calibration(torch.tensor([3.0, 18.5]), torch.tensor([[[1.0, 40.0]], [[2.0, 3.0]]]))
        >>> decision.p_value.tolist(), decision.is_anomalous.tolist(), decision.mask.tolist()
        ([0.85, 0.05], [False, True], [[[False, True]], [[False, False]]])
    """

    largest: ClassVar[int] = 10**7
    """Largest number of values of a buffer in a file."""

    scores: Tensor | None
    maxima: Tensor | None
    rate: Tensor | None
    counts: Tensor | None  # of the scores and maxima of each category, which follow each other
    thresholds: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in STORED:
            self.register_buffer(name, None)
        self.register_buffer("thresholds", None, persistent=False)
        self.chosen: int | None = None
        self._span = slice(None)  # of the chosen scores

    @property
    def count(self) -> int:
        """Number of calibration images, of the chosen category if one is chosen."""
        return 0 if self.scores is None else len(self.scores[self._span])

    @property
    def categories(self) -> int:
        """Number of categories, 0 if the images are not told apart."""
        return 0 if self.counts is None else len(self.counts)

    @property
    def false_alarm_rate(self) -> float | None:
        """False-alarm rate of decisions, or None without calibration."""
        return None if self.rate is None else self.rate[0].item() / self.rate[1].item()

    def fit(
        self,
        scores: Tensor,
        maxima: Tensor,
        false_alarm_rate: float | None = None,
        categories: Sequence[int] | None = None,
    ) -> None:
        """Set the scores of normal images that were not trained on.

        Args:
            scores: (n,) image scores.
            maxima: (n,), the maximum of each image's anomaly map.
            false_alarm_rate: None takes the lowest of 1, 5 and 10 % that n, or the smallest category, allows.
            categories: the number of the category of each image, from 0; None does not tell them apart.

        Raises:
            ConfigError: If n is too small for the rate; the message names the number needed.
        """
        if scores.dim() != 1 or scores.shape != maxima.shape or not len(scores):
            raise ShapeError(
                f"scores and maxima must both be (n,), but got {tuple(scores.shape)} and {tuple(maxima.shape)}"
            )
        if not (scores.isfinite().all() and maxima.isfinite().all()):
            raise ShapeError("scores and maxima must be finite, but got inf or NaN; fit the model again")
        groups = torch.zeros(len(scores), dtype=torch.int64) if categories is None else torch.tensor(categories)
        if len(groups) != len(scores):
            raise ShapeError(f"categories must be {len(scores)} numbers, one for each score, but got {len(groups)}")
        counts = groups.bincount()
        least = int(counts.min())
        exact = exact_rate(check_count(least, false_alarm_rate))  # raises before anything is changed
        places = [(groups == k).to(scores.device) for k in range(len(counts))]
        self.scores, self.maxima = (
            torch.cat([x.detach()[own].sort().values for own in places]) for x in (scores, maxima)
        )
        self.rate = torch.tensor([exact.numerator, exact.denominator], device=scores.device)
        self.counts = None if categories is None else counts.to(scores.device)
        self.choose(None)

    def choose(self, category: int | None) -> None:
        """Decide by the images of one category, by its number, or by all of them."""
        if category is not None and not 0 <= category < self.categories:
            raise ConfigError(f"category must be None or a number below {self.categories}, but got {category}")
        self.chosen = category
        if self.scores is not None:
            self._derive()

    def set_rate(self, false_alarm_rate: float) -> None:
        """Change the false-alarm rate of decisions; p-values stay the same."""
        if self.scores is None or self.maxima is None:
            raise ConfigError("detector must be calibrated to set a rate, but got no calibration; calibrate it first")
        chosen, counts = self.chosen, self.counts
        groups = None if counts is None else torch.arange(len(counts)).repeat_interleave(counts.cpu()).tolist()
        self.fit(self.scores, self.maxima, false_alarm_rate, groups)
        self.choose(chosen)

    def clear(self) -> None:
        """Remove the calibration, for example because the scores have changed."""
        self.scores = self.maxima = self.rate = self.counts = self.thresholds = self.chosen = None

    def forward(self, score: Tensor, anomaly_map: Tensor) -> Decision:
        """Decide for scores (B,) and anomaly maps (B, H, W)."""
        if self.scores is None or self.thresholds is None:
            return Decision()
        # Negated, so that NaN is above every threshold.
        image, pixel = self.thresholds
        return Decision(conformal_p_values(self.scores[self._span], score), ~(score <= image), ~(anomaly_map <= pixel))

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: object) -> None:
        found = [state_dict.get(prefix + name) for name in STORED]
        if all(x is None for x in found):
            self.clear()
        else:
            given = _check_state(found, prefix)
            device = next(iter(self.buffers()), given[0]).device
            self.scores, self.maxima, self.rate = (torch.empty_like(x, device=device) for x in given)
            counts, self.chosen = found[3], None
            self.counts = None if counts is None else torch.empty_like(counts, device=device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.scores is not None:
            self._derive()

    def _derive(self) -> None:
        scores, maxima, rate = (cast(Any, x) for x in (self.scores, self.maxima, self.false_alarm_rate))
        self._span = slice(None)
        if self.chosen is not None and self.counts is not None:
            ends = [0, *self.counts.cumsum(0).tolist()]
            self._span = slice(ends[self.chosen], ends[self.chosen + 1])
        self.thresholds = torch.stack([conformal_threshold(x[self._span], rate) for x in (scores, maxima)])

    def extra_repr(self) -> str:
        """Show the number of images and the rate."""
        several = f" of {self.categories} categories" if self.categories and self.chosen is None else ""
        rate = f"{several}, false_alarm_rate={self.false_alarm_rate}"
        return f"{counted(self.count, 'image')}{rate}" if self.count else "none"


def check_categories(categories: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the different names of the categories of images, in the order of the known ones if there are any.

    >>> check_categories(["nut", "screw", "nut"], ["screw", "nut"])
    ('screw', 'nut')

    Raises:
        ConfigError: If a known category is missing, or another is there.
    """
    found = tuple(dict.fromkeys(categories))
    if not (found and known):
        return found
    if set(found) != set(known):
        raise ConfigError(
            f"categories of calibration images must be those of the model, {', '.join(known)}, but got "
            f"{', '.join(found)}"
        )
    return tuple(known)


def _check_state(found: Sequence[Tensor | None], prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors of a file; raise CheckpointError unless `fit` could have made them."""
    scores, maxima, rate, counts = found
    advice = "calibrate the model again"
    if scores is None or maxima is None or rate is None:
        raise CheckpointError(f"{prefix}scores must come with maxima and rate, but got only some of them; {advice}")
    floats = scores.is_floating_point() and maxima.dtype == scores.dtype
    if scores.dim() != 1 or scores.shape != maxima.shape or not floats:
        raise CheckpointError(
            f"{prefix}scores and {prefix}maxima must be (n,) of one float type, but got {tuple(scores.shape)} of "
            f"{scores.dtype} and {tuple(maxima.shape)} of {maxima.dtype}; {advice}"
        )
    if not (scores.isfinite().all() and maxima.isfinite().all()):
        raise CheckpointError(f"{prefix}scores and {prefix}maxima must be finite, but got inf or NaN; {advice}")
    if tuple(rate.shape) != (2,) or rate.dtype != torch.int64 or not 0 < rate[0].item() < rate[1].item() <= FINEST:
        raise CheckpointError(f"{prefix}rate must be numerator and denominator of a rate, but got others; {advice}")
    needed = images_needed(rate[0].item() / rate[1].item())
    if len(scores) < needed:
        raise CheckpointError(f"{prefix}scores must be at least {needed} for the rate, but got {len(scores)}; {advice}")
    if counts is not None and (
        counts.dim() != 1 or counts.dtype != torch.int64 or counts.sum() != len(scores) or (counts < needed).any()
    ):
        raise CheckpointError(
            f"{prefix}counts must be at least {needed} for each category, {len(scores)} together, but got others; "
            f"{advice}"
        )
    return scores, maxima, rate
