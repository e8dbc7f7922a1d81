"""Calibration that `fit` was asked for, compared with that of a run that is resumed."""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from semflow.detectors.conformal import exact_rate
from semflow.detectors.normal_scores import NormalScores
from semflow.errors import CheckpointError

from .cache import NormalImages
from .categories import categories_of
from .crossing import Crossing
from .holdout import CROSS, Given, calibrate, calibration_digest
from .run import Run


@dataclass(frozen=True)
class Asked:
    """Calibration images and rate in the arguments of `fit`, and options of `calibrate`.

    `given` is the argument itself: a data set is compared with that of a finished run. Images held out are part of the
    training images, which are compared anyway, and the run may have been calibrated on others since.
    """

    given: Given
    images: Dataset[Any] | None
    rate: float | None
    options: Mapping[str, Any]
    crossing: Crossing | None = None

    def check(self, run: Run, finished: bool) -> None:
        """Raise CheckpointError if a run has a calibration that differs from this one."""
        calibration = run.detector.calibration
        if not calibration.count:
            return
        if self.images is None and self.crossing is None:
            if not finished or self.given is not None:
                raise CheckpointError(
                    f"{run.folder} must be resumed with calibration images, since it is calibrated on "
                    f"{calibration.count}, but got {self.given}"
                )
            return
        found = calibration.false_alarm_rate
        if self.rate is not None and (found is None or exact_rate(self.rate) != exact_rate(found)):
            raise CheckpointError(
                f"{run.folder} must be resumed with false_alarm_rate = {found}, since it is finished, but got "
                f"{self.rate}; calibrate the finished model instead"
            )
        crossed = run.detector.provenance.calibration == CROSS
        if finished and self.crossing is not None and not crossed:
            raise CheckpointError(
                f"{run.folder} must be resumed with the calibration images that it was finished with, "
                f"{calibration.count}, but got {CROSS!r}; start a new run"
            )
        if finished and self.images is not None and not isinstance(self.given, numbers.Real):
            sizes = {name: self.options[name] for name in ("batch_size", "workers", "processes")}
            own, other = run.detector.provenance.calibration, calibration_digest(self.images, **sizes)
            if own != other:
                raise CheckpointError(
                    f"{run.folder} must be resumed with calibration images of digest {own[:12] or 'unknown'}, since "
                    f"it is finished, but got {other[:12]}; calibrate the finished model instead"
                )

    def check_images(self, normal: NormalImages) -> None:
        """Raise DataError if a cross-conformal calibration is not possible, see `Crossing.check`."""
        if self.crossing is not None:
            self.crossing.check(normal)

    def calibrate(
        self, run: Run, normal: NormalImages, scores: NormalScores | None = None, finished: bool = True
    ) -> None:
        """Calibrate the detector of a run, and write it if it is finished and was not calibrated.

        `scores` are those of `Detector.fit_score` if it has just been called.
        """
        if finished and run.detector.calibration.count:
            return
        if self.crossing is not None:
            detector = run.detector.eval()
            if scores is None or not self.crossing.alone(detector):
                scores = self.crossing.scores(detector, normal, run.folder)
            detector.calibrate_on(scores, self.rate, CROSS, categories_of(self.crossing.dataset))
        elif self.images is not None:
            calibrate(run.detector.eval(), self.images, self.rate, **self.options)
        else:
            return
        if finished:
            run.processes.first(run.rewrite)
