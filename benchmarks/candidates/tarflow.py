"""A transformer flow (TarFlow, Zhai et al., ICML 2025)."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from semflow.flows import Standardize

from .plain import BLOCKS, POSITION, PlainFlow

WIDTH, HEADS, LAYERS = 128, 4, 2
LARGEST = 1.9  # log scale of a channel in one block, as in the couplings


class CausalBlock(nn.Module):
    """A transformer over the locations of a map: z_t = (x_t - m_t) exp(-a_t), m_t and a_t of x_1 to x_{t-1}.

    Args:
        channels: C.
        backward: go through the locations from the last to the first.
    """

    def __init__(self, channels: int, backward: bool) -> None:
        super().__init__()
        self.backward = backward
        self.enter = nn.Linear(channels, WIDTH)
        self.first = nn.Parameter(torch.zeros(WIDTH))  # in the place of what is before the first location
        self.place = nn.Linear(POSITION, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.leave = nn.Linear(WIDTH, 2 * channels)
        nn.init.zeros_(self.leave.weight)  # training starts at the identity
        nn.init.zeros_(self.leave.bias)

    def predicted(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and a (B, n, C) of locations (B, n, C) in the order of the block, with position codes (n, D)."""
        before = torch.cat((self.first.expand(len(x), 1, -1), self.enter(x[:, :-1])), 1)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        mean, log_scale = self.leave(self.layers(before + self.place(places), mask, is_causal=True)).chunk(2, 2)
        return mean, LARGEST * torch.tanh(log_scale / LARGEST)

    def turned(self, x: Tensor) -> Tensor:
        """Reverse the order of locations (..., n, C), if the block goes backward."""
        return x.flip(-2) if self.backward else x

    def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Map locations (B, n, C); return latents and log-dets (B, n)."""
        x = self.turned(x)
        mean, log_scale = self.predicted(x, self.turned(places))
        z, log_det = (x - mean) * torch.exp(-log_scale), -log_scale.sum(2, keepdim=True)
        return self.turned(z), self.turned(log_det)[..., 0]

    def inverse(self, z: Tensor, places: Tensor) -> Tensor:
        """Map latents back, one location after the other."""
        z, places = self.turned(z), self.turned(places)
        x = torch.zeros_like(z)
        for t in range(z.shape[1]):
            mean, log_scale = self.predicted(x[:, : t + 1], places[: t + 1])
            x[:, t] = z[:, t] * torch.exp(log_scale[:, -1]) + mean[:, -1]
        return self.turned(x)


class TransformerFlow(PlainFlow):
    """The plain flow with blocks of transformers in the place of couplings.

    The blocks go through the locations of a map forward and backward in turn. The log-det of a location is the part of
    the map's that its own scales give, and depends on the other locations.

    Args:
        channels: of the feature maps.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels)
        self.first = nn.ModuleList(Standardize(c) for c in channels)
        self.flows = nn.ModuleList(
            nn.ModuleList(CausalBlock(c, backward=block % 2 == 1) for block in range(BLOCKS)) for c in channels
        )

    def standardizer(self, scale: int) -> Standardize:
        """Return the standardization of the features of a scale."""
        return cast(Standardize, self.first[scale])

    def places(self, x: Tensor) -> Tensor:
        """Return the position codes of the locations of a map, (H W, D)."""
        return self.position(x.shape[2], x.shape[3]).dense().to(x).flatten(1).T

    def encode(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the latents (B, C, H, W) and log-dets (B, H, W) of each scale."""
        found = []
        for scale, whole in enumerate(maps):
            x, log_det = self.standardizer(scale)(whole)
            locations = x.flatten(2).transpose(1, 2)
            for block in cast(nn.ModuleList, self.flows[scale]):
                locations, more = block(locations, self.places(whole))
                log_det = log_det + more.view(-1, *whole.shape[2:])
            found.append((locations.transpose(1, 2).reshape(whole.shape), log_det))
        return found

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Map latents back to feature maps."""
        found = []
        for scale, z in enumerate(latents):
            locations = z.flatten(2).transpose(1, 2)
            for block in reversed(cast(nn.ModuleList, self.flows[scale])):
                locations = cast(CausalBlock, block).inverse(locations, self.places(z))
            found.append(self.standardizer(scale).inverse(locations.transpose(1, 2).reshape(z.shape)))
        return found
