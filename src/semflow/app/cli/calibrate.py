"""`semflow calibrate`: calibrate the detector of a run directory on good images."""

from semflow._validation import counted
from semflow.detectors import Detector, rate_interval
from semflow.detectors.conformal import check_count
from semflow.errors import CheckpointError, DataError
from semflow.recipes import load, save
from semflow.training import calibrate
from semflow.training.holdout import CROSS

from .console import say
from .inputs import cache_small, check_images, exit_code, note_of, open_normal, reading
from .options import Calibrate


def run(options: Calibrate) -> int:
    """Score the images, and replace the model of the run by the calibrated one."""
    if options.model.is_file():
        raise CheckpointError(
            f"--model must be a run directory, but got the file {options.model}; calibrate its run and export it again"
        )
    if (options.data / "train").is_dir():
        raise DataError(
            f"--data must be a folder of good images, but got {options.data} with train/; name a folder of images that "
            "were not used for training"
        )
    detector = load(options.model, device=options.device)
    size, allow = detector.provenance.image_size, options.allow_anomalous
    read = reading(detector, options.region)
    dataset = cache_small(open_normal(options.data, size, "--data", None, allow, **read), options.workers)
    check_count(len(dataset), options.false_alarm_rate)
    if dataset.passed_over:
        say(f"calibrating on {counted(len(dataset), 'image')}{note_of(dataset.passed_over, dataset.root)}")
    check_images(dataset)
    calibrate(
        detector, dataset, options.false_alarm_rate, batch_size=options.batch_size, workers=options.workers,
        allow_anomalous=allow,
    )  # fmt: skip
    save(detector, options.model)
    report_calibration(detector)
    say(f"wrote {options.model}")
    return exit_code(dataset.passed_over)


def report_calibration(detector: Detector) -> None:
    """Print the false-alarm rate to expect."""
    count, rate = detector.calibration.count, detector.false_alarm_rate
    if rate is not None:
        cross = detector.provenance.calibration == CROSS
        images = f"all {count} images for training and calibration" if cross else counted(count, "calibration image")
        low, high = (f"{100 * bound:.2g} %" for bound in rate_interval(count, rate))
        most = "about" if cross else "at most"
        say(
            f"With {images} the false-alarm rate is {most} {100 * rate:.3g} % on average; for this particular set it "
            f"is likely (90 %) between {low} and {high}."
        )
