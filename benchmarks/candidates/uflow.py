"""A flow from coarse to fine scales (U-Flow, Tailanian, Pardo, Musé, 2022)."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.flows import FlowSequence, Standardize

from .plain import PlainFlow, couplings

FOLD = 2  # ratio of the sizes of two scales


class UShapedFlow(PlainFlow):
    """The plain flow with scales that are connected, in the form of the letter U.

    Half of the coarsest scale's channels are its latents. The others are unfolded to twice the height and width, and
    join the features of the next finer scale, whose flow maps both, and so on. The latents of the finest scale are all
    its channels. Its log-det at a location is that of the scale's couplings there; all together are that of the map.

    Args:
        channels: of the feature maps, fine to coarse; each scale has half the height and width of the one before.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels)
        self.first = nn.ModuleList(Standardize(c) for c in channels)
        self.passed = [0] * len(channels)  # channels that go on to the next finer scale
        flows, joining = [], 0
        for scale in reversed(range(len(channels))):
            whole = channels[scale] + joining
            self.passed[scale] = whole // 2 // FOLD**2 * FOLD**2 if scale else 0
            self.widths[scale] = whole - self.passed[scale]
            joining = self.passed[scale] // FOLD**2
            flows.append(couplings(whole, standardize=False))
        self.flows = nn.ModuleList(reversed(flows))

    def standardizer(self, scale: int) -> Standardize:
        """Return the standardization of the features of a scale."""
        return cast(Standardize, self.first[scale])

    def encode(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the latents (B, C, H, W) and log-dets (B, H, W) of each scale."""
        found: list[tuple[Tensor, Tensor]] = []
        contexts, joining = self.contexts(maps), None
        for scale in reversed(range(len(maps))):
            x, log_det = self.standardizer(scale)(maps[scale])
            x = x if joining is None else torch.cat((x, joining), 1)
            x, more = self.flows[scale](x, contexts[scale])
            z, passed = x.split((self.widths[scale], self.passed[scale]), 1)
            joining = F.pixel_shuffle(passed, FOLD) if scale else None
            found.insert(0, (z, log_det + more))
        return found

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Map latents back to feature maps."""
        found: list[Tensor] = []
        contexts, passed = self.contexts(latents), None
        for scale, z in enumerate(latents):
            whole = z if passed is None else torch.cat((z, passed), 1)
            x = cast(FlowSequence, self.flows[scale]).inverse(whole, contexts[scale])
            own = self.standardizer(scale).channels
            found.append(self.standardizer(scale).inverse(x[:, :own]))
            passed = F.pixel_unshuffle(x[:, own:], FOLD) if scale + 1 < len(latents) else None
        return found

    def nll(self, log_probs: Sequence[Tensor]) -> Tensor:
        """Return the mean of -log p of a whole image, per dimension."""
        total = torch.stack([x.flatten(1).sum(1) for x in log_probs]).sum(0)
        dimensions = sum(x[0].numel() * width for x, width in zip(log_probs, self.widths, strict=True))
        return -total.mean() / dimensions
