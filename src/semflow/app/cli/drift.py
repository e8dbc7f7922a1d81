"""The test of drift that `semflow predict` and `semflow score` keep in a file over all runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from semflow.detectors import DriftTest, Predictor
from semflow.errors import ConfigError
from semflow.files import hash_parts, refuse_unwritable

from .console import say


def open_drift(path: Path, detector: Predictor, model: Path, origin: str, category: str | None) -> DriftTest:
    """Return the test of a file, or a new one; raise ConfigError if it belongs to another calibration."""
    rate = detector.false_alarm_rate
    if rate is None:
        raise ConfigError(f"{model} must be calibrated for --drift, but got no calibration; run semflow calibrate")
    if category is not None:
        origin = hash_parts((origin, category))
    cross = detector.provenance.calibration == "cross"
    new = DriftTest(detector.calibration_images, rate, cross=cross, origin=origin)
    if not path.exists():
        refuse_unwritable(path)
        return new
    found = DriftTest.load(path)
    settings = ("origin", "images", "false_alarm_rate", "cross")
    if any(getattr(found, name) != getattr(new, name) for name in settings):
        raise ConfigError(
            f"--drift {path} must be of {model} as it is now and of its false-alarm rate and category, but got a test "
            "of another; name a new file"
        )
    return found


def record_drift(
    test: DriftTest, path: Path, scores: Sequence[float], p_values: Sequence[float], names: Sequence[str]
) -> None:
    """Add images in the order of time, write the file, and warn of a drift; images that it has seen are left out."""
    test.update(scores, p_values, names)
    test.save(path)
    evidence = f"evidence {min(test.highest, 1e9):.3g} of {1 / test.delta:.3g}"
    if test.warned:
        print(
            f"caution: images that pass as good no longer score as before, {evidence}; if nothing has changed, this "
            f"warning ever comes with a probability of at most {100 * test.delta:g} %; check light, camera and "
            "material, and calibrate again",
            file=sys.stderr,
        )
    else:
        say(f"no sign of drift in {test.count} images that passed as good: {evidence}")
