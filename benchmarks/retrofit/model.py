"""Training and evaluation of one flow per scale on one of the bases."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.adapters import with_statistics
from semflow.bases import SemanticGaussian
from semflow.metrics import ImageAccumulator, PixelAccumulator
from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance, LearnedVariance, VarianceHead

from .flows import Library

Variant = Literal["own", "learned", "predicted"]
VARIANTS: dict[Variant, str] = {
    "own": "the library's standard normal and its log_prob",
    "learned": "one learned variance per scale (control)",
    "predicted": "InverseGammaVariance of FeatureStatisticsNetworks",
}
Maps = list[Tensor]
TOP = 0.01
CHUNK = 8


class Model:
    """One flow per scale, on one of the bases.

    The flows are created first, so that all variants of a seed have the same flows.

    Args:
        library: of the flows.
        variant: `own` trains and scores by the library's log_prob, the others by `semflow.with_statistics`.
        sizes: (C, (H, W)) of each scale.
        mode: initial variance of the added bases, and the mode of the prior.
    """

    def __init__(
        self, library: Library, variant: Variant, sizes: Sequence[tuple[int, tuple[int, int]]], mode: float
    ) -> None:
        self.library, self.variant = library, variant
        self.yours = [library.make(channels, size) for channels, size in sizes]
        self.flows = [library.wrap(one) for one in self.yours]
        head: VarianceHead | None = None
        if variant == "learned":
            head = LearnedVariance(len(sizes), start=mode)
        elif variant == "predicted":
            head = InverseGammaVariance([FeatureStatisticsNetwork(channels) for channels, _ in sizes], mode=mode)
        self.plain = with_statistics(self.flows, None)
        self.model = with_statistics(self.flows, head)
        # With the variance integrated out, the density of the latents is a Student t.
        self.marginal = with_statistics(self.flows, head, head and SemanticGaussian(form="marginal"))

    def library_log_prob(self, maps: Maps) -> Maps:
        """Return the library's log p on its standard normal, one tensor per scale."""
        return [self.library.log_prob(one, x) for one, x in zip(self.yours, maps, strict=True)]

    def log_prob(self, maps: Maps, integrated: bool = False) -> Maps:
        """Return log p of the variant, one tensor per scale: (B, H, W) or (B,)."""
        if self.variant == "own":
            return self.library_log_prob(maps)
        log_probs: Maps = (self.marginal if integrated else self.model).log_prob(maps)
        return log_probs

    def loss(self, maps: Maps) -> Tensor:
        """Return the negative log-likelihood per dimension, summed over the scales."""
        if self.variant != "own":
            return self.model.loss(maps).total
        own = zip(self.library_log_prob(maps), maps, strict=True)
        return -torch.stack([p.mean() / dimensions(x, p) for p, x in own]).sum()

    def train(self, maps: Maps, steps: int, batch_size: int, learning_rate: float, seed: int) -> Iterator[int]:
        """Train by Adam on shuffled batches with a cosine decay to zero, and yield the number of each finished step."""
        generator = torch.Generator().manual_seed(seed)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(1, steps + 1):
            self.model.train()
            while len(order) < batch_size:
                order = torch.cat((order, torch.randperm(len(maps[0]), generator=generator)))
            index, order = order[:batch_size], order[batch_size:]
            loss = self.loss([x[index] for x in maps])
            if not loss.isfinite():
                found = f"{loss.item()} in step {step} of {steps}"
                raise ArithmeticError(f"loss must be finite, but got {found}; lower --learning-rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield step
        self.model.eval()

    @torch.no_grad()
    def per_dimension(self, maps: Maps, integrated: bool = False) -> float:
        """Return log p of all scales per image and dimension, in nats."""
        self.model.eval()
        total = 0.0
        for chunk in chunks(maps):
            log_probs = self.log_prob(chunk, integrated)
            total += sum(p.double().sum().item() for p in log_probs)
        return total / sum(x.numel() for x in maps)

    @torch.no_grad()
    def latent_map(self, maps: Maps, size: tuple[int, int]) -> Tensor:
        """Return the anomaly map of `with_statistics`, without log-det."""
        return (self.plain if self.variant == "own" else self.model).anomaly_map(maps, size=size, log_det=False)

    @torch.no_grad()
    def feature_map(self, maps: Maps, size: tuple[int, int]) -> Tensor:
        """Return the anomaly map with log-det, -log p(x) / C, of a flow with a log-det per location."""
        self.model.eval()
        log_probs = [p / x.shape[1] for p, x in zip(self.log_prob(maps), maps, strict=True)]
        ups = [F.interpolate(p[:, None], size, mode="bilinear", align_corners=False)[:, 0] for p in log_probs]
        return -torch.stack(ups).mean(0)

    @torch.no_grad()
    def disagreement(self, maps: Maps) -> float:
        """Return the largest difference of log p per dimension on a standard normal, by the library and by semflow."""
        self.model.eval()
        pairs = zip(self.library_log_prob(maps), self.plain.log_prob(maps), maps, strict=True)
        return max(float(((a - b) / dimensions(x, a)).abs().max()) for a, b, x in pairs)

    def counts(self) -> dict[str, int]:
        """Return the numbers of trained parameters of the flows and of the head."""
        parts: dict[str, nn.Module | None] = {"flows": self.model.flows, "head": self.model.head}
        return {
            name: 0 if part is None else sum(p.numel() for p in part.parameters() if p.requires_grad)
            for name, part in parts.items()
        }


def detection(
    anomaly_map: Callable[[Maps, tuple[int, int]], Tensor] | None, maps: Maps, labels: Tensor, masks: Tensor
) -> dict[str, float | None]:
    """Return image AUROC (of the mean of the highest 1 % of a map), pixel AUROC and AUPRO of test images."""
    if anomaly_map is None:
        return dict.fromkeys(("image_auroc", "pixel_auroc", "aupro"))
    images, pixels = ImageAccumulator(), PixelAccumulator()
    size = (masks.shape[1], masks.shape[2])
    top = max(1, round(TOP * math.prod(size)))
    for chunk, known, mask in zip(chunks(maps), labels.split(CHUNK), masks.split(CHUNK), strict=True):
        scores = anomaly_map(chunk, size)
        images.update(scores.flatten(1).topk(top, dim=1).values.mean(1), known)
        pixels.update(scores, mask)
    of_pixels = pixels.compute()
    return {"image_auroc": images.compute().auroc, "pixel_auroc": of_pixels.auroc, "aupro": of_pixels.aupro}


def chunks(maps: Maps) -> Iterator[Maps]:
    return (list(parts) for parts in zip(*(x.split(CHUNK) for x in maps), strict=True))


def dimensions(x: Tensor, log_prob: Tensor) -> int:
    """Return the number of values of x that one entry of log p covers."""
    return x[0].numel() if log_prob.dim() == 1 else x.shape[1]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's and numpy's global generators, from which the libraries draw, and restore them afterward."""
    before = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
