"""`semflow export`: export the detector of a run directory to one file that runs without this library."""

import torch

from semflow.app.export.saving import check_destination, save
from semflow.data import open_dataset
from semflow.errors import CheckpointError, ConfigError
from semflow.files import refuse_unwritable
from semflow.recipes import load

from .command import printed, unused
from .console import print_table, say
from .inputs import advise
from .options import Export

SAMPLES = 8


def run(options: Export) -> None:
    """Load the detector, write the file, and print how much the results differ."""
    if options.images is not None:
        if not options.check:
            raise ConfigError(f"--images must be left out with --no-check, but got {options.images}")
        advise(options.images, "--images")
    refuse_unwritable(options.output)
    check_destination(options.output, options.format)
    if options.model.is_file():
        raise CheckpointError(f"--model must be a run directory, but got the file {options.model}")
    detector = load(options.model, device="cpu")
    images = None
    if options.images is not None:
        made = detector.provenance
        if made.regions:
            raise ConfigError(
                "--images must be left out for a model that was trained with a folder of masks, but got "
                f"{options.images}"
            )
        dataset = open_dataset(options.images, "predict", made.image_size, resize=made.resize)
        images = torch.stack([dataset[index].image for index in range(min(SAMPLES, len(dataset)))])
    exported = save(
        detector, options.output, format=options.format, input=options.input_type, images=images, check=options.check
    )
    if exported.differences:
        print_table(
            f"{options.output} compared with {options.model}",
            ("result", "largest relative difference"),
            [(name, f"{value:.1e}") for name, value in exported.differences.items()],
        )
    say(f"wrote {options.output}")
    results = unused(options.output.with_name(f"{options.output.stem}-results"))
    words = ["predict", "--model", options.output, "--output", results, "--input", options.images or "IMAGES"]
    say(f"next: {printed(words)}")
