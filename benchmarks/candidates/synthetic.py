"""Training with synthetic anomalies: SANFlow's cross-entropy, and BGAD's boundary loss (Yao et al., CVPR 2023)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from semflow.bases import SemanticGaussian, StandardNormal
from semflow.detectors.inputs import location_masks
from semflow.nn import Statistics
from semflow.objectives import Objective
from semflow.synthesis import CutPaste, Poisson

from .plain import PlainFlow, couplings

VARIANCE = 0.1  # around the means 0 of normal and 1 of anomalous locations
OBJECTIVES = {"BCE": Objective(bce=1.0, kl=0.0), "boundary": Objective(bce=0.0, kl=0.0, boundary=1.0)}
BACKGROUNDS = {"toothbrush": (20.0, 20.0), "screw": (200.0, 60.0)}  # as published for NSA

Kind = Literal["CutPaste", "Poisson"]


def synthesis(kind: Kind, category: str) -> CutPaste | Poisson:
    """Return the synthetic anomalies of a kind, for Poisson with the published options for a category."""
    if kind == "CutPaste":
        return CutPaste()
    if category in BACKGROUNDS:
        return Poisson(background=BACKGROUNDS[category])
    return Poisson(resize=(0.5, 2.0), patches=4)


class SyntheticFlow(PlainFlow):
    """The plain flow, also trained with synthetic anomalies.

    `BCE` has SANFlow's base with a fixed variance: means of 0 for normal and 1 for anomalous locations, and the
    cross-entropy of the log-odds. `boundary` has the plain flow's base and adds BGAD's boundary loss; the likelihood is
    that of normal locations only.

    Args:
        channels: of the feature maps.
        term: of the loss that synthetic anomalies add.
        kind: of synthetic anomalies.
    """

    def __init__(self, channels: Sequence[int], term: Literal["BCE", "boundary"], kind: Kind = "CutPaste") -> None:
        super().__init__(channels)
        self.objective, self.synthesis = OBJECTIVES[term], kind
        self.normal = SemanticGaussian() if term == "BCE" else StandardNormal()
        if term == "BCE":
            self.flows = nn.ModuleList(couplings(c, start=VARIANCE**0.5) for c in channels)

    def statistics(self, z: Tensor) -> Statistics:
        """Return the fixed variance at each location."""
        return Statistics(torch.full_like(z[:, :1], VARIANCE))

    def log_probs(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return log p at each location of each scale under the normal distribution, (B, H, W), in nats."""
        return [self.normal.log_prob(z, self.statistics(z)) + log_det for z, log_det in self.encode(maps)]

    def loss(self, maps: Sequence[Tensor], labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, whose anomalies are marked in masks (B, H, W) of the images' size."""
        parts = []
        for z, log_det in self.encode(maps):
            at, ignored = location_masks(masks, (z.shape[2], z.shape[3]), "max", guard=1)
            terms = self.objective(z, log_det, "location", self.normal, self.statistics(z), at, ignored)
            parts.append(terms.total)
        return torch.stack(parts).sum()
