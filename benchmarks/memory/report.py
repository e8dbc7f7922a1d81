"""The report of the study: a table for each category, and what the rule chose."""

from collections.abc import Sequence
from statistics import fmean

from semflow.training.choice import LARGEST_SPREAD

from ..shared.figures import markdown_table, number, spread, text_of
from ..shared.store import Kept
from .rows import FEATURES, LATENTS, ROWS, RULE

METRICS = {
    "image_max": "image, max",
    "image_0.3": "0.3 %",
    "image_1": "1 %",
    "image_3": "3 %",
    "pixel": "pixel",
    "aupro": "AUPRO",
    "held_image_0.3": "held-out image",
    "held_pixel": "pixel",
    "held_aupro": "AUPRO",
}
TEXT = f"""\
Each row is a sum of maps on the grid of stride 8, each standardized by mean and standard deviation on held-out normal
images (every fifth training image); resized to the image, blurred with sigma 4. *features* and *latents*: logarithm
of the distance to the nearest of the vectors that a k-center memory stores, of the features or of what a flow makes
of them. *with log det*: minus the log-det per channel, as in a density of the features. *NLL*: of the flow. Scales:
stride 4, averaged to the grid of 8; stride 8; strides 8 and 16 concatenated. These three are summed unless a row
names one scale; *and scale 16+32* adds strides 16 and 32, concatenated, to the three. The flow is trained with CutPaste
anomalies and cross-entropy, or, *no synthesis*, by its likelihood alone; *under a memory*, by a density around the
latents of the other three images of the batch.

AUROC of images (maximum of the map, mean of the highest 0.3, 1 and 3 %), AUROC of pixels and AUPRO, in percent.
Held-out figures are of the held-out normal images and synthetic defects on them, of other kinds than CutPaste's
(images: 0.3 %). ± is the standard deviation over the seeds. The test images of these categories have been seen
during development.

The rule takes latents instead of features if the spread of the log-det, its standard deviation per channel over the
locations of held-out normal images, averaged over the scales, is at most {LARGEST_SPREAD}. It sees no defects."""


def to_markdown(kept: Sequence[Kept]) -> str:
    """Return the report of finished cells."""
    if not kept:
        return "# Memories and flows\n\nNo cells yet.\n"
    order = [f"{row} @ " for row in ROWS]
    kept = sorted(
        kept, key=lambda cell: (cell["row"].partition(" @ ")[2], order.index(cell["row"].partition("@")[0] + "@ "))
    )
    names = sorted({cell["category"] for cell in kept})
    first = kept[0]["settings"]
    parts = ["# Memories and flows, each idea alone and together"]
    parts.append(
        f"{first['backbone']} ({first['weights']} weights), {first['vectors']} stored vectors per scale, "
        f"{first['steps']} training steps of four images. The image is enlarged by the factor after @."
    )
    parts += [TEXT, "## What the rule chose", _rule(kept, names)]
    for name in names:
        cells = [cell for cell in kept if cell["category"] == name]
        seeds = sorted({cell["seed"] for cell in cells})
        sizes = sorted({cell["settings"]["image_size"] for cell in cells})
        parts.append(f"## {name}, {' or '.join(map(str, sizes))} px, seeds {', '.join(map(str, seeds))}")
        parts.append(_table(cells, seeds))
    commits = sorted({cell["record"]["commit"] for cell in kept})
    versions = {name: version for cell in kept for name, version in cell["record"]["versions"].items()}
    machines = dict.fromkeys(cell["record"]["machine"] for cell in kept)
    parts += [
        "## How it was made",
        f"- cells of commit {', '.join(commits)}; each names its command\n- "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"\n- {' or '.join(machines)}",
    ]
    return "\n\n".join(parts) + "\n"


def _table(cells: Sequence[Kept], seeds: Sequence[int]) -> str:
    lines = []
    for row in dict.fromkeys(cell["row"] for cell in cells):
        of_row = {cell["seed"]: cell["result"]["metrics"] for cell in cells if cell["row"] == row}
        some = "" if sorted(of_row) == list(seeds) else f" (seed {', '.join(map(str, sorted(of_row)))})"
        found = [text_of(spread({seed: one[name] for seed, one in of_row.items()}), 1, factor=100) for name in METRICS]
        lines.append([row.removesuffix(" @ 1") + some, *found])
    return markdown_table(["", *METRICS.values()], lines)


def _rule(kept: Sequence[Kept], names: Sequence[str]) -> str:
    """Return the spread of the log-det, the gain of latents over features on test images in points, and the choices."""
    cells = {(cell["row"], cell["category"], cell["seed"]): cell["result"] for cell in kept}
    lines = []
    for row in (row for row in dict.fromkeys(cell["row"] for cell in kept) if row.startswith(RULE)):
        at = row.removeprefix(RULE)
        for name in names:
            seeds = [seed for one, category, seed in cells if (one, category) == (row, name)]
            pairs = [
                [cells[kind + at, name, seed]["metrics"] for kind in (LATENTS, FEATURES)]
                for seed in seeds
                if all((kind + at, name, seed) in cells for kind in (LATENTS, FEATURES))
            ]
            if not pairs:
                continue
            gains = [100 * fmean(a[m] - b[m] for a, b in pairs) for m in ("image_1", "pixel", "aupro")]
            chosen = ", ".join(cells[row, name, seed]["choice"] for seed in seeds)
            found = text_of(spread({seed: cells[row, name, seed]["spread"] for seed in seeds}), 2)
            texts = [number(gain, 1, signed=True) for gain in gains]
            lines.append([name + at.removesuffix(" @ 1"), found, *texts, chosen])
    heading = ["latents against features", "spread", "test: image, 1 %", "pixel", "AUPRO", "choice by seed"]
    return markdown_table(heading, lines)
