"""Codebooks of images and of locations (VQ-Flow, Zhou et al., arXiv 2409.00942)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from semflow.functional import from_locations, to_locations
from semflow.nn import Context

from .plain import POSITION, PlainFlow

PROTOTYPES, CODES, HIDDEN, DECAY = 16, 512, 128, 0.99


class Codebook(nn.Module):
    """Vectors that follow the running mean of the inputs nearest to them.

    Args:
        size: number of codes.
        channels: of a code.
    """

    codes: Tensor
    counts: Tensor
    used: Tensor

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(size, channels))
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("used", torch.zeros(size, dtype=torch.bool))

    def start(self, vectors: Tensor) -> None:
        """Draw the codes from vectors (n, C)."""
        size = len(self.codes)
        rows = torch.randperm(len(vectors))[:size] if len(vectors) >= size else torch.randint(len(vectors), (size,))
        self.codes.copy_(vectors[rows])
        self.counts.fill_(1.0)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the row of the nearest code of each vector, (n); note the rows that are used."""
        rows = torch.cdist(vectors, self.codes).argmin(1)
        self.used[rows] = True
        return rows

    @torch.no_grad()
    def follow(self, vectors: Tensor, rows: Tensor) -> None:
        """Move the codes towards the vectors of which they are the nearest."""
        counts = torch.zeros_like(self.counts).index_add_(0, rows, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(self.codes).index_add_(0, rows, vectors)
        before, self.counts = self.counts, DECAY * self.counts + (1 - DECAY) * counts
        moved = (DECAY * before[:, None] * self.codes + (1 - DECAY) * sums) / self.counts[:, None]
        self.codes = torch.where(counts[:, None] > 0, moved, self.codes)


class CodebookFlow(PlainFlow):
    """The plain flow with codebooks.

    The pooled deepest features of an image choose a prototype, from which a small network predicts mean and scale of
    each channel of the base, the same at all locations. The feature and the position of a location choose a code, of
    which a linear map is the couplings' condition, as wide as the plain flow's position code. Near a feature the code
    is the same, so the log-det of the couplings is that of the whole map. But the condition depends on what is mapped:
    the density integrates to at most the number of codes at each location, not to 1.

    Args:
        channels: of the feature maps.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels)
        self.prototypes = Codebook(PROTOTYPES, channels[-1])
        self.books = nn.ModuleList(Codebook(CODES, c + POSITION) for c in channels)
        self.maps = nn.ModuleList(nn.Linear(c + POSITION, POSITION) for c in channels)
        last = nn.Linear(HIDDEN, 2 * sum(channels))
        nn.init.zeros_(last.weight)  # training starts at N(0, I)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(channels[-1], HIDDEN), nn.ReLU(), last)
        self.following = False

    def prepare(self, maps: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        """Standardize, and draw the first codes."""
        found = super().prepare(maps, labels)
        self.prototypes.start(self.pooled(found))
        for scale, book in enumerate(self.books):
            cast(Codebook, book).start(self.described(scale, found[scale]))
        return found

    def notes(self) -> dict[str, float]:
        """Return the number of prototypes that are the nearest of an image, of the last batch and all that follow."""
        return {"prototypes": int(self.prototypes.used.sum())}

    def pooled(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the mean of the deepest features of each image, (B, C)."""
        deepest: Tensor = self.standardizer(len(maps) - 1)(maps[-1])[0]
        return deepest.mean((2, 3))

    def described(self, scale: int, x: Tensor) -> Tensor:
        """Return features and position codes of all locations, (B H W, C + D)."""
        standardized: Tensor = self.standardizer(scale)(x)[0]
        code = self.position(x.shape[2], x.shape[3]).dense().to(x)
        return to_locations(torch.cat((standardized, code.expand(len(x), -1, -1, -1)), 1))

    def choose(self, book: Codebook, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes and the nearest one's row of each vector; in training, the codes then follow."""
        vectors, codes = vectors.detach(), book.codes
        rows = book.nearest(vectors)
        if self.following:
            book.follow(vectors, rows)
        return codes, rows

    def contexts(self, maps: Sequence[Tensor]) -> list[Context]:
        """Return the mapped codes of the locations, (B, D, H, W)."""
        found: list[Context] = []
        for scale, (book, linear, x) in enumerate(zip(self.books, self.maps, maps, strict=True)):
            codes, rows = self.choose(cast(Codebook, book), self.described(scale, x))
            found.append(from_locations(linear(codes)[rows], (x.shape[2], x.shape[3])))
        return found

    def predicted(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return mean and log scale of the base at each scale, (B, C, 1, 1)."""
        codes, rows = self.choose(self.prototypes, self.pooled(maps))
        means, scales = self.network(codes)[rows][..., None, None].chunk(2, 1)
        return [*zip(means.split(self.widths, 1), torch.tanh(scales).split(self.widths, 1), strict=True)]

    def log_probs(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return log p at each location of each scale, (B, H, W), in nats."""
        found = []
        for (z, log_det), (mean, log_scale) in zip(self.encode(maps), self.predicted(maps), strict=True):
            squares = ((z - mean) * torch.exp(-log_scale)).square()
            found.append(-(0.5 * squares + log_scale + 0.5 * math.log(2 * math.pi)).sum(1) + log_det)
        return found

    def loss(self, maps: Sequence[Tensor], labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, and let the codes follow it."""
        self.prototypes.used.fill_(False)
        self.following = True
        try:
            return super().loss(maps, labels)
        finally:
            self.following = False
