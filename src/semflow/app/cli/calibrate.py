"""`semflow calibrate`: calibrate the detector of a run directory on good images."""

from semflow._validation import counted
from semflow.data import categories_in
from semflow.detectors import Detector, rate_interval
from semflow.detectors.calibration import check_categories
from semflow.errors import CheckpointError, DataError
from semflow.recipes import load, save
from semflow.training import calibrate
from semflow.training.categories import categories_of, check_counts
from semflow.training.holdout import CROSS

from .console import say
from .inputs import cache_small, check_images, exit_code, note_of, open_normal, reading
from .options import Calibrate
from .tiling import check_tiles


def run(options: Calibrate) -> int:
    """Score the images, and replace the model of the run by the calibrated one."""
    if options.model.is_file():
        raise CheckpointError(
            f"--model must be a run directory, but got the file {options.model}; calibrate its run and export it again"
        )
    for folder in (options.data, *(options.data / name for name in categories_in(options.data))):
        if (folder / "train").is_dir():
            raise DataError(
                f"--data must be a folder of good images, but got {folder} with train/; name a folder of images that "
                "were not used for training"
            )
    detector = load(options.model, device=options.device)
    check_tiles(options, detector.provenance)
    size, allow = detector.provenance.loaded_size, options.allow_anomalous
    read = reading(detector, options.region)
    if options.categories:
        known = detector.provenance.categories
        read["categories"] = known if known and options.categories == ("all",) else options.categories
    dataset = cache_small(open_normal(options.data, size, "--data", allow, **read), options.workers)
    check_counts(dataset, options.false_alarm_rate)
    check_categories(categories_of(dataset), detector.provenance.categories)
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
    if rate is not None and detector.calibration.counts is not None:
        counts = detector.calibration.counts.tolist()
        each = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
        most = "about" if detector.provenance.calibration == CROSS else "at most"
        say(
            f"With {each} calibration images of each category, the false-alarm rate of a category is {most} "
            f"{100 * rate:.3g} % on average, if its name is given to predict."
        )
    elif rate is not None:
        cross = detector.provenance.calibration == CROSS
        images = f"all {count} images for training and calibration" if cross else counted(count, "calibration image")
        low, high = (f"{100 * bound:.2g} %" for bound in rate_interval(count, rate))
        most = "about" if cross else "at most"
        say(
            f"With {images} the false-alarm rate is {most} {100 * rate:.3g} % on average; for this particular set it "
            f"is likely (90 %) between {low} and {high}."
        )
