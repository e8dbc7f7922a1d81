"""The record of how a detector was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from semflow.synthesis import CutPaste

__all__ = ["Provenance"]


@dataclass(frozen=True)
class Provenance:
    """Record of how a detector was made. Recipes and training write it; the detector itself never reads it.

    Args:
        recipe: name of the registered recipe, "" for a detector that was assembled by hand.
        module: module that registers the recipe.
        arguments: the recipe's arguments as plain values, see `semflow.recipes.plain_settings`.
        image_size: side in pixels of the images that the detector was made for.
        training: `semflow.training.TrainingConfig` that `semflow.fit` uses by default.
        synthesis: synthetic anomalies that `semflow.fit` uses by default; None trains on normal images alone.
        fingerprints: one per training image: calibration rejects these images.

    Example:
        >>> from semflow.recipes import build
        >>> detector = build("cflow_ad", {"backbone": "resnet18", "backbone.weights": "random", "couplings.blocks": 1})
        >>> detector.provenance.recipe, detector.provenance.image_size, detector.provenance.arguments["couplings"]
        ('cflow_ad', 256, {'blocks': 1, 'position_channels': 128, 'permutation': 'soft', 'standardize': False})
    """

    recipe: str = ""
    module: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 256
    training: Any = None
    synthesis: CutPaste | None = None
    fingerprints: tuple[str, ...] = ()
