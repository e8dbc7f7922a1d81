"""The rows of the study: which maps are summed, and how they are made; and the settings of all rows."""

from dataclasses import dataclass
from typing import Literal, get_args

Scale = Literal["4", "8", "8+16", "16+32"]
SCALES: tuple[Scale, ...] = "4", "8", "8+16"
COARSE: Scale = "16+32"
Kind = Literal["features", "latents", "latents with log det", "NLL"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Setup:
    """Settings that all cells of a category share.

    Args:
        backbone, weights, image_size: of the frozen features.
        vectors: size of a memory.
        steps: of training a flow.
    """

    backbone: str
    weights: str
    image_size: int
    vectors: int
    steps: int


@dataclass(frozen=True)
class Row:
    """A sum of standardized maps.

    Args:
        parts: kind and scale of each map; none for the position Gaussian and the rule.
        blur: sigma in pixels.
        pooling: side of the window over which features are averaged.
        memory: how the stored vectors are chosen.
        mirrored: add the mirrored training images to the memory.
        rotated: add the training images rotated by 90, 180 and 270 degrees to the memory.
        synthesis: train the flow with CutPaste anomalies and BCE, otherwise by its likelihood alone.
        under_memory: train the flow under the density of a memory, the other images of the batch: log distance to their
            nearest latent, minus the log-det per channel.
        magnified: measure the row at all magnifications, otherwise at 1 only.
    """

    parts: tuple[tuple[Kind, Scale], ...] = ()
    blur: float = 4.0
    pooling: int = 3
    memory: Literal["k-center", "random", "all"] = "k-center"
    mirrored: bool = False
    rotated: bool = False
    synthesis: bool = True
    under_memory: bool = False
    magnified: bool = False


def summed(*kinds: Kind) -> tuple[tuple[Kind, Scale], ...]:
    """Return all scales of some kinds."""
    return tuple((kind, scale) for kind in kinds for scale in SCALES)


POSITION, RULE = "position Gaussian", "chosen by the rule"
FEATURES, LATENTS = "features", "latents"
ROWS: dict[str, Row] = {
    FEATURES: Row(summed("features"), magnified=True),
    LATENTS: Row(summed("latents"), magnified=True),
    RULE: Row(magnified=True),
    "latents with log det": Row(summed("latents with log det"), magnified=True),
    "NLL": Row(summed("NLL"), magnified=True),
    "features + latents": Row(summed("features", "latents"), magnified=True),
    "features + latents with log det": Row(summed("features", "latents with log det"), magnified=True),
    **{f"{kind}, scale {scale}": Row(((kind, scale),)) for kind in KINDS for scale in SCALES},
    **{f"features, blur {sigma}": Row(summed("features"), blur=sigma) for sigma in (0, 2, 6)},
    **{f"latents, blur {sigma}": Row(summed("latents"), blur=sigma) for sigma in (0, 2, 6)},
    POSITION: Row(),
    **{f"{kind}, no synthesis": Row(summed(kind), synthesis=False) for kind in KINDS[1:]},
    **{f"{kind}, trained under a memory": Row(summed(kind), synthesis=False, under_memory=True) for kind in KINDS[1:3]},
    **{f"features, pooling {side}": Row(summed("features"), pooling=side) for side in (1, 5)},
    "features, mirrored too": Row(summed("features"), mirrored=True),
    "features, rotated too": Row(summed("features"), rotated=True),
    f"features, scale {COARSE}": Row((("features", COARSE),)),
    f"features and scale {COARSE}": Row((*summed("features"), ("features", COARSE))),
    f"latents, scale {COARSE}": Row((("latents", COARSE),)),
    f"latents and scale {COARSE}": Row((*summed("latents"), ("latents", COARSE))),
    "features, scale 8, random memory": Row((("features", "8"),), memory="random"),
    "features, scale 8, all stored": Row((("features", "8"),), memory="all"),
}
