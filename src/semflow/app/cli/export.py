"""`semflow export`: export the detector of a run directory to one file that runs without this library."""

import torch
from torch import Tensor

from semflow.app.export.saving import check_destination, save
from semflow.data import Tiles, open_dataset
from semflow.errors import CheckpointError, ConfigError
from semflow.files import refuse_unwritable
from semflow.recipes import load

from .command import printed, unused
from .console import print_table, say
from .inputs import advise
from .options import Export
from .tiling import check_tiles

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
    check_tiles(options, detector.provenance)
    images = None
    if options.images is not None:
        made = detector.provenance
        if made.regions:
            raise ConfigError(
                "--images must be left out for a model that was trained with a folder of masks, but got "
                f"{options.images}"
            )
        dataset, tiles = open_dataset(options.images, "predict", made.loaded_size, resize=made.resize), made.tiles
        found = (dataset[index].image for index in range(min(SAMPLES, len(dataset))))
        images = torch.stack([image if tiles is None else middle_tile(image, tiles) for image in found])
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


def middle_tile(image: Tensor, tiles: Tiles) -> Tensor:
    """Return a tile (3, S, S) near the middle of an image (3, H, W)."""
    places = tiles.places(*image.shape[-2:])
    return torch.from_numpy(tiles.cut(image.numpy(), places[len(places) // 2]))
