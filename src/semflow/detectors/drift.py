"""A test of whether images that pass as good still score as good images did, with a bound on false warnings.

The conformal test martingale of Vovk, Nouretdinov, Gammerman: Testing Exchangeability On-Line, 2003. Each score is
ranked among all before it and among those of the calibration. If they are exchangeable, the randomized ranks are
independent and uniform, and no bets on them make a capital of 1 grow to 1 / delta, ever, with probability over delta.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from semflow._validation import at_least, checked
from semflow.errors import CheckpointError, ConfigError, ShapeError
from semflow.files import hash_parts, writing
from semflow.files.tensors import check_digest, load_tensors, save_tensors

from .conformal import check_count, exact_rate

FORMAT = 1
SLOPES = (-2.0, -1.0, 1.0, 2.0)
"""Slopes of the bets 1 + slope (p - 1/2) on p-values, for scores that rise and that fall."""
START = 9
"""A drift is taken to start at image t with probability START / ((t + START - 1) (t + START))."""
BLOCK = 1024
LARGEST, RICHEST = 2**31, 1e300


class DriftTest:
    """Test of exchangeability over time of the images that are not called anomalous.

    Scores at and above the decision threshold are left out, both of new images and of the calibration, so that the
    others are exchangeable while nothing changes. The p-value of a new score is its randomized rank among the others,
    of the calibration and before it, and joins them. Four bettors stake on p-values that are too small or too large;
    their start is spread over time, so that a drift is found after a long time without any. `evidence` is their
    capital, and a warning is given once it has reached 1 / delta.

    If nothing changes, **the probability that there is ever a warning is at most delta**, whatever the number of
    images, of calibration images and the distribution of the scores, unless scores tie with the calibration.

    Args:
        images: number of calibration images.
        false_alarm_rate: rate of the decisions.
        delta: bound on the probability of a false warning.
        cross: the calibration is cross-conformal. Its scores are of other models, so that new ones are only compared
            with each other: a drift before the first of them is not seen.
        origin: what the scores come from, such as the digest of a model; it is stored.
        seed: seed of the randomization.

    Attributes:
        evidence: the capital now, 1 at the start.
        highest: its largest value so far.

    Example:
        >>> from semflow.detectors import conformal_p_values
        >>> good, generator = torch.arange(99.0), torch.Generator().manual_seed(0)
        >>> test = DriftTest(images=99, false_alarm_rate=0.05)
        >>> scores = 99 * torch.rand(200, generator=generator)
        >>> test.update(scores, conformal_p_values(good, scores))
        False
        >>> later = 40 + 59 * torch.rand(50, generator=generator)
        >>> test.update(later, conformal_p_values(good, later)), test.highest > 100
        (True, True)
    """

    @checked
    def __init__(
        self,
        images: int,
        false_alarm_rate: float,
        delta: float = 0.01,
        *,
        cross: bool = False,
        origin: str = "",
        seed: int = 0,
    ) -> None:
        at_least(1, images=images)
        at_least(0, seed=seed)
        if not 0 < delta < 1:
            raise ConfigError(f"delta must be between 0 and 1, such as 0.01, but got {delta}")
        check_count(images, false_alarm_rate)
        self.images, self.false_alarm_rate, self.delta = images, false_alarm_rate, delta
        self.cross, self.origin, self.seed = cross, origin, seed
        self.highest = 1.0
        self._alarms = math.floor((images + 1) * exact_rate(false_alarm_rate))  # ranks that are called anomalous
        self._capital = np.array([1.0] + [0.0] * len(SLOPES))  # first, what is not yet staked
        self._scores = np.empty(0)  # in order
        self._names = np.empty(0, np.int64)

    @property
    def evidence(self) -> float:
        """Capital of the bettors."""
        return float(self._capital.sum())

    @property
    def warned(self) -> bool:
        """True if the evidence has ever reached 1 / delta."""
        return self.highest >= 1 / self.delta

    @property
    def count(self) -> int:
        """Number of new images in the test."""
        return len(self._scores)

    def update(self, scores: ArrayLike, p_values: ArrayLike, names: Sequence[str] | None = None) -> bool:
        """Add the scores (B,) and p-values (B,) of predictions in the order of time, and return `warned`.

        Args:
            scores: scores of the images; those called anomalous are left out.
            p_values: their p-values by the same detector.
            names: one per image, such as the digest of its file; images whose name has been added before are left out.
        """
        values, p = (np.asarray(x, dtype=np.float64) for x in (scores, p_values))
        if values.ndim != 1 or values.shape != p.shape or (names is not None and len(names) != len(values)):
            raise ShapeError(f"scores and p_values must both be (B,), but got {values.shape} and {p.shape}")
        higher = np.rint(p * (self.images + 1)).astype(np.int64) - 1  # calibration scores that are at least as high
        passed = np.isfinite(values) & (higher >= self._alarms)
        marks = np.arange(-1, -1 - len(values), -1) if names is None else _digests(names)
        if names is not None:
            first = np.zeros(len(values), bool)
            first[np.unique(marks, return_index=True)[1]] = True
            passed &= first & ~np.isin(marks, self._names)
        kept = np.flatnonzero(passed)
        for start in range(0, len(kept), BLOCK):
            part = kept[start : start + BLOCK]
            self._bet(self.p_values(values[part], higher[part]))
            self._scores = np.sort(np.concatenate([self._scores, values[part]]), kind="stable")
            self._names = np.concatenate([self._names, marks[part]])
        return self.warned

    def p_values(self, scores: NDArray[np.float64], higher: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compute the randomized p-values (B,) of the next scores, each among all before it.

        Args:
            scores: scores below the decision threshold, in the order of time.
            higher: number of calibration scores that are at least as high as each.
        """
        count, place = len(self._scores), np.arange(len(scores))
        earlier = place[:, None] > place
        above = count - np.searchsorted(self._scores, scores, "right")
        above = above + ((scores > scores[:, None]) & earlier).sum(1)
        ties = np.searchsorted(self._scores, scores, "right") - np.searchsorted(self._scores, scores, "left")
        ties = ties + ((scores == scores[:, None]) & earlier).sum(1)
        total = count + place
        if not self.cross:
            above, total = above + higher - self._alarms, total + self.images - self._alarms
        # Draws depend on the place of the image alone, not on how images are divided among updates.
        chance = np.random.Generator(np.random.PCG64(self.seed).advance(count)).random(len(scores))
        return np.asarray((above + chance * (ties + 1)) / (total + 1))

    def _bet(self, p_values: NDArray[np.float64]) -> None:
        idle, *stakes = self._capital.tolist()
        highest = self.highest
        for time, p in enumerate(p_values.tolist(), len(self._scores) + START + 1):
            started = idle / time
            idle -= started
            each = started / len(SLOPES)
            stakes = [
                min((x + each) * (1 + slope * (p - 0.5)), RICHEST) for x, slope in zip(stakes, SLOPES, strict=True)
            ]
            highest = max(highest, idle + sum(stakes))
        self._capital, self.highest = np.array([idle, *stakes]), highest

    def save(self, path: str | Path) -> None:
        """Write the test to a file atomically, with 16 bytes per image."""
        about = {
            "format": FORMAT, "images": self.images, "false_alarm_rate": self.false_alarm_rate, "delta": self.delta,
            "cross": self.cross, "origin": self.origin, "seed": self.seed, "highest": self.highest,
        }  # fmt: skip
        tensors = {"capital": self._capital, "scores": self._scores, "names": self._names}
        with writing(Path(path)):
            save_tensors(Path(path), {name: torch.tensor(x) for name, x in tensors.items()}, {"drift": about})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a test from a file; raise CheckpointError if it is damaged or none."""
        path = Path(path)
        expected = {"capital": torch.empty(1 + len(SLOPES), dtype=torch.float64)}
        more = {"scores": torch.empty(0, dtype=torch.float64), "names": torch.empty(0, dtype=torch.int64)}
        tensors, about = load_tensors(path, {**expected, **more}, flexible=dict.fromkeys(more, LARGEST))
        check_digest(path, tensors, about)
        made = about.get("drift")
        made = dict(made) if isinstance(made, dict) else {}
        found = made.pop("format", None)
        if found != FORMAT:
            raise CheckpointError(f"{path} must be a drift test of format {FORMAT}, but got {found}; name a new file")
        try:
            highest = float(made.pop("highest"))
            test = cls(made.pop("images"), made.pop("false_alarm_rate"), made.pop("delta"), **made)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{path} must be a drift test, but got {error}; name a new file") from error
        if len(tensors["scores"]) != len(tensors["names"]) or not tensors["capital"].isfinite().all():
            raise CheckpointError(f"{path} must have a finite capital and a name per score, but got others")
        test.highest = highest
        test._capital, test._scores, test._names = (tensors[name].numpy() for name in ("capital", "scores", "names"))
        return test


def _digests(names: Sequence[str]) -> NDArray[np.int64]:
    """Return 63 bits of the digest of each name."""
    return np.array([int(hash_parts([name])[:16], 16) >> 1 for name in names], dtype=np.int64)
