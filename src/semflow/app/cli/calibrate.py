"""`semflow calibrate`: good images that were not trained on, and a run directory that can decide from then on."""

__all__ = ["decide_at", "run", "say_calibration"]

from pathlib import Path

from semflow.data import open_dataset
from semflow.detectors import Calibration, Detector, Predictor, rate_interval
from semflow.detectors.conformal import check_count
from semflow.errors import CheckpointError, ConfigError, DataError
from semflow.training import calibrate
from semflow.training.loading import check_device

from .console import say
from .inputs import load_detector, verified
from .options import Calibrate, Device


def run(options: Calibrate) -> None:
    """Score the images and write the calibration into the run's model, which is replaced as a whole."""
    if options.model.is_file():
        raise CheckpointError(
            f"--model {options.model} is a file, expected a run directory; an exported file keeps the decisions it was "
            "made with: calibrate its run, and export that again"
        )
    from semflow.recipes import load, save  # predict from an exported file imports this module, and needs no timm

    detector = load(options.model).to(check_device(options.device))
    if (options.data / "train").is_dir():
        raise DataError(
            f"--data {options.data} holds train/, expected a folder of good images that were not trained on; name it"
        )
    dataset = verified(open_dataset(options.data, "train", detector.provenance.image_size), cache=True)
    check_count(len(dataset), options.false_alarm_rate)
    calibrate(detector, dataset, options.false_alarm_rate, batch_size=options.batch_size, workers=options.workers)
    save(detector, options.model)
    say_calibration(detector.calibration)
    say(f"wrote {options.model}")


def say_calibration(calibration: Calibration) -> None:
    """What one may expect of its decisions."""
    rate = calibration.false_alarm_rate
    if rate is None:
        return
    low, high = rate_interval(calibration.count, rate)
    say(
        f"calibrated on {calibration.count} good images: a false-alarm rate of at most {100 * rate:.3g} % over all "
        f"sets of so many, and nine times out of ten of {100 * low:.2g} to {100 * high:.2g} % with the one at hand"
    )


def decide_at(model: Path, device: Device, false_alarm_rate: float | None) -> Predictor:
    """The detector of a run directory or an exported file, which decides at the rate, if one is given."""
    detector = load_detector(model, device)
    if false_alarm_rate is None or false_alarm_rate == detector.false_alarm_rate:
        return detector
    if not isinstance(detector, Detector):
        at = f"at {detector.false_alarm_rate:g} only" if detector.false_alarm_rate is not None else "nothing"
        raise ConfigError(f"--false-alarm-rate {false_alarm_rate:g}: the exported file {model} decides {at}")
    if not detector.calibration.count:
        raise ConfigError(
            f"--false-alarm-rate {false_alarm_rate:g} needs a calibrated model, but {model} is not; "
            "use semflow calibrate on it first"
        )
    detector.calibration.set_rate(false_alarm_rate)
    return detector
