"""Messages that `semflow fit` prints in addition to its progress."""

from pathlib import Path

from semflow._validation import counted
from semflow.data import Categories, ImageDataset
from semflow.data.resizing import placement
from semflow.detectors import Detector
from semflow.detectors.conformal import RATES
from semflow.training import optional_flows
from semflow.training.choice import LARGEST_SPREAD
from semflow.training.frames import taken_for_good
from semflow.training.holdout import LEAST

from .command import printed
from .console import say


def report_resizing(dataset: ImageDataset) -> None:
    """Print how images of other proportions are resized."""
    parts = dataset.parts.values() if isinstance(dataset, Categories) else (dataset,)
    for line in dict.fromkeys(map(_resizing, parts)):
        if line:
            say(line)


def _resizing(dataset: ImageDataset) -> str:
    if dataset.image_size is None or dataset.shape is None:
        return ""
    width, height = dataset.read_image(0).size
    box = placement((width, height), dataset.image_size, "pad")
    if (box.height, box.width) != dataset.shape[1:]:
        size = f"images of {width} x {height} pixels to {dataset.shape[2]} x {dataset.shape[1]} (width x height)"
        stretching = f"stretching {size}; --resize pad keeps their proportions"
        return f"padding {size}" if dataset.resize == "pad" else stretching
    return ""


def report_choice(detector: Detector) -> None:
    """Print whether flows that may be left out are used, and why."""
    for flow in optional_flows(detector)[:1]:  # the choice is the same for all
        if flow.used or flow.spread > LARGEST_SPREAD:
            choice, relation = ("used", "at most") if flow.used else ("left out", "more than")
            say(f"the flow is {choice}: its log-det has a spread of {flow.spread:.2f}, {relation} {LARGEST_SPREAD}")
        else:
            say("the flow is left out: it was not trained")


def report_too_few(images: int, category: str, output: Path) -> None:
    """Print why predict will not decide after training on a number of images, of one category, and what to do."""
    of = f" of {category}" if category else ""
    few = f"a fifth of {images} images{of}, held out with --tile," if images >= LEAST else counted(images, "image") + of
    words = ["calibrate", "--model", output, "--data", "FOLDER", *(["--categories", "all"] if category else [])]
    say(
        f"no decisions yet: {few} {'are' if 1 < images < LEAST else 'is'} fewer than the {LEAST} that the highest "
        f"default false-alarm rate, {100 * RATES[-1]:g} %, needs; photograph {LEAST} or more other good parts"
        f"{' of each category' if category else ''}, then: "
        f"{printed(words)}"
    )


def report_frames(detector: Detector) -> None:
    """Print whether frames without a part are told from good images."""
    frames = detector.provenance.frames
    taken = taken_for_good(frames, detector.false_alarm_rate)
    if taken:
        parts = (f"{name} ({100 * frames[name]['good_images_as_high']:.3g} %)" for name in taken)
        say(
            "caution: frames without a part score like good images, of which so many score as high: "
            f"{', '.join(parts)}; train for longer, or check the images by other means"
        )
    elif frames:
        say(f"frames without a part ({', '.join(frames)}) score higher than good images")
