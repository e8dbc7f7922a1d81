"""The flow that all rows share, CFLOW-AD's: couplings conditioned on position for each scale, to N(0, I)."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from semflow.bases import StandardNormal
from semflow.flows import FlowSequence, Standardize, coupling_stack
from semflow.nn import Context, SinusoidalPosition2d

BLOCKS, POSITION = 4, 128


def couplings(channels: int, **options: Any) -> FlowSequence:
    """Return the couplings of one scale, those of the recipe `sanflow` with half of its blocks."""
    return coupling_stack(
        channels, BLOCKS, context_channels=POSITION, permutation="hard", **{"standardize": True, **options}
    )


class PlainFlow(nn.Module):
    """A flow for each scale with a standard normal base; the other rows derive from it.

    Args:
        channels: of the feature maps.
    """

    trains = True  # False for a model without gradient steps
    synthesis: str | None = None  # kind of synthetic anomalies that half of each batch has

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(channels)  # of the latents
        self.flows = nn.ModuleList(couplings(c) for c in channels)
        self.position = SinusoidalPosition2d(POSITION)
        self.base = StandardNormal()

    def prepare(self, maps: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        """Fit what is fitted to the maps of all training images, and return what the flow is trained on."""
        for scale, x in enumerate(maps):
            self.standardizer(scale).fit([x])
        return list(maps)

    def seen(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return what the flow sees of the maps of other images."""
        return list(maps)

    def refer(self, maps: Sequence[Tensor]) -> None:
        """Use the training images of the category that is tested next, if the model has a use for them."""

    def notes(self) -> dict[str, float]:
        """Return what else is measured of a trained model, by name."""
        return {}

    def standardizer(self, scale: int) -> Standardize:
        """Return the first flow of a scale."""
        return cast(Standardize, cast(FlowSequence, self.flows[scale])[0])

    def contexts(self, maps: Sequence[Tensor]) -> list[Context]:
        """Return the condition of the couplings at each scale."""
        return [self.position(x.shape[2], x.shape[3]) for x in maps]

    def encode(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the latents (B, C, H, W) and log-dets (B, H, W) of each scale."""
        scales = zip(self.flows, maps, self.contexts(maps), strict=True)
        return [flow(x, context) for flow, x, context in scales]

    def log_probs(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return log p at each location of each scale, (B, H, W), in nats."""
        return [self.base.log_prob(z) + log_det for z, log_det in self.encode(maps)]

    def loss(self, maps: Sequence[Tensor], labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the loss of a batch: the mean of -log p per dimension, summed over the scales."""
        return self.nll(self.log_probs(maps))

    def nll(self, log_probs: Sequence[Tensor]) -> Tensor:
        """Return the mean of -log p per dimension, summed over the scales."""
        means = [-x.mean() / width for x, width in zip(log_probs, self.widths, strict=True)]
        return torch.stack(means).sum()
