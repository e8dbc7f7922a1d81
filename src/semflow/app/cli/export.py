"""`semflow export`: a run directory to one file that runs without this library."""

__all__ = ["run"]

import torch
from torch import Tensor

from semflow.app.export.saving import check_destination, save
from semflow.data import open_dataset
from semflow.errors import CheckpointError
from semflow.files import refuse_unwritable
from semflow.recipes import load

from .console import print_table, say
from .options import Export

SAMPLES = 8


def run(options: Export) -> None:
    """Load, write, compare, and say what was found."""
    refuse_unwritable(options.output)
    check_destination(options.output, options.format)
    if options.model.is_file():
        raise CheckpointError(
            f"--model {options.model} is a file, expected the run directory that fit has made; name it"
        )
    detector = load(options.model)
    exported = save(
        detector,
        options.output,
        format=options.format,
        input=options.input_type,
        images=_images(options, detector.provenance.image_size),
        check=options.check,
    )
    if exported.differences:
        print_table(
            f"{options.output} against {options.model}",
            ("result", "largest relative difference"),
            [(name, f"{value:.1e}") for name, value in exported.differences.items()],
        )
    say(f"wrote {options.output}")
    say(f"next: semflow predict --model {options.output} --input IMAGES --output RESULTS")


def _images(options: Export, size: int) -> Tensor | None:
    if options.images is None or not options.check:
        return None
    dataset = open_dataset(options.images, "predict", size)
    return torch.stack([dataset[index].image for index in range(min(SAMPLES, len(dataset)))])
