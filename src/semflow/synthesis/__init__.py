"""Synthetic anomalies: patches cut from one normal image and pasted into another with a soft border."""

from .cutpaste import KINDS, CutPaste
from .dataset import SyntheticAnomalies
from .patches import blend, circle, jitter_colors, rectangle, soft_alpha

__all__ = ["KINDS", "CutPaste", "SyntheticAnomalies", "blend", "circle", "jitter_colors", "rectangle", "soft_alpha"]
