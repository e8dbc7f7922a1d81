"""`semflow remember`: put a memory of good images under the flow of a run directory."""

import shutil
from typing import Any, Literal

from semflow.data import ImageDataset
from semflow.detectors.conformal import check_count
from semflow.errors import CheckpointError, ConfigError
from semflow.files import refuse_occupied, staged_folder
from semflow.recipes import StoredMemory, load, remember, save
from semflow.training.categories import check_counts
from semflow.training.checkpoint import CONFIG, LOG

from .calibrate import report_calibration
from .console import say
from .inputs import cache_small, check_images, exit_code, names_of, note_of, open_normal, reading, together
from .options import Remember


def run(options: Remember) -> int:
    """Fit the memory, and write the run with it, to a new folder or in the place of the model."""
    if options.model.is_file():
        raise CheckpointError(
            f"--model must be a run directory, but got the file {options.model}; name the run that it was exported from"
        )
    if options.output is not None:
        refuse_occupied(options.output)
    memory = StoredMemory(
        options.form, options.neighbors, options.size or None, options.space, None, options.log_det, options.seed
    )
    detector = load(options.model, device=options.device)
    made = detector.provenance
    read, allow = reading(detector, options.region), options.allow_anomalous
    dataset = open_normal(options.data, made.loaded_size, "--data", allow, **read, **names_of(options))
    calibration = _calibration(options, dataset, read)
    if isinstance(calibration, ImageDataset):
        dataset.passed_over += calibration.passed_over
    if calibration is not None:
        if isinstance(calibration, int):
            check_count(calibration, options.false_alarm_rate)
        else:
            check_counts(dataset if isinstance(calibration, str) else calibration, options.false_alarm_rate)
    check_images(cache_small(dataset, options.workers))
    remember(
        detector, dataset, memory, calibration=calibration, false_alarm_rate=options.false_alarm_rate,
        batch_size=options.batch_size, workers=options.workers, seed=made.training.seed if made.training else 0,
        allow_anomalous=options.allow_anomalous,
    )  # fmt: skip
    if options.output is None:
        save(detector, options.model)
    else:
        with staged_folder(options.output) as folder:
            for name in (CONFIG, LOG):
                if (options.model / name).is_file():
                    shutil.copyfile(options.model / name, folder / name)
            save(detector, folder)
    numbers = [len(base.get_buffer("vectors")) for base in detector.bases]
    vectors = ", ".join(map(str, numbers)) + (" vector" if numbers == [1] else " vectors")
    say(f"stored {vectors}, one memory per scale{note_of(dataset.passed_over, dataset.root)}")
    report_calibration(detector)
    say(f"wrote {options.output or options.model}")
    return exit_code(dataset.passed_over)


def _calibration(
    options: Remember, dataset: ImageDataset, read: dict[str, Any]
) -> int | ImageDataset | Literal["cross"] | None:
    """Return the calibration images, how many images to hold out, `cross`, or None for no calibration."""
    if options.calibration is None:
        if options.false_alarm_rate is not None and not options.hold_out:
            raise ConfigError(
                f"--false-alarm-rate must come with --hold-out or --calibration, but got {options.false_alarm_rate:g}"
            )
        return options.hold_out or None
    if options.hold_out:
        raise ConfigError(f"--hold-out must be left out with --calibration, but got {options.hold_out}")
    return open_normal(
        options.calibration, dataset.image_size, "--calibration", options.allow_anomalous, **read, **together(dataset)
    )
