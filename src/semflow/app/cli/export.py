"""`semflow export`: export the detector of a run directory to one file that runs without this library."""

import torch
from torch import Tensor

from semflow._validation import counted
from semflow.app.export.check import to_input
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

SAMPLES = 64


def run(options: Export) -> None:
    """Load the detector, write the file, and print how much the results differ."""
    if options.images is not None:
        if not options.check:
            raise ConfigError(f"--images must be left out with --no-check, but got {options.images}")
        advise(options.images, "--images")
    refuse_unwritable(options.output)
    check_destination(options.output, options.format, options.precision)
    if options.model.is_file():
        raise CheckpointError(f"--model must be a run directory, but got the file {options.model}")
    detector = load(options.model, device="cpu")
    check_tiles(options, detector.provenance)
    detector.set_category(options.category)
    images = None
    if options.images is not None:
        made = detector.provenance
        if made.regions:
            raise ConfigError(
                "--images must be left out for a model that was trained with a folder of masks, but got "
                f"{options.images}"
            )
        dataset = open_dataset(options.images, "predict", made.loaded_size, resize=made.resize)
        chosen = torch.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).round().int().tolist()
        images = to_input([_tile(dataset[index].image, made.tiles) for index in chosen], "uint8")
    exported = save(
        detector, options.output, format=options.format, input=options.input_type, images=images, check=options.check,
        precision=options.precision,
    )  # fmt: skip
    if exported.differences:
        print_table(
            f"{options.output} compared with {options.model}",
            ("result", "largest relative difference"),
            [(name, f"{value:.1e}") for name, value in exported.differences.items()],
        )
    if (cost := exported.cost) is not None:
        print_table(
            f"{options.precision}: differences in standard deviations",
            ("result", "mean difference", "largest difference"),
            [
                ("score", f"{cost.score_mean:.2g}", f"{cost.score_largest:.2g}"),
                ("anomaly_map", f"{cost.map_mean:.2g}", f"{cost.map_largest:.2g}"),
            ],
        )
        if cost.decisions is not None:
            say(f"decisions change for {cost.decisions or 'none'} of {counted(cost.images, 'image')}")
    say(f"wrote {options.output}")
    results = unused(options.output.with_name(f"{options.output.stem}-results"))
    words = ["predict", "--model", options.output, "--output", results, "--input", options.images or "IMAGES"]
    say(f"next: {printed(words)}")


def _tile(image: Tensor, tiles: Tiles | None) -> Tensor:
    """Return a tile (C, S, S) near the middle of an image (C, H, W), or the image itself without tiles."""
    if tiles is None:
        return image
    places = tiles.places(*image.shape[-2:])
    return torch.from_numpy(tiles.cut(image.numpy(), places[len(places) // 2]))
