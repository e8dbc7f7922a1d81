"""A mixture of Gaussians with a learned center for each category (HGAD, Yao et al., ECCV 2024)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .plain import PlainFlow

INTRA = 10  # centers around that of a category
SPREAD = 0.1  # standard deviation of the first centers
ENTROPY = 0.01  # weight of the entropy relative to that of the mutual information


class ClassMixture(nn.Module):
    """Mixture of Gaussians N(mu_c, I) with learned centers and weights, one for each category.

    Args:
        classes: number of categories.
        channels: C.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(SPREAD * torch.randn(classes, channels))
        self.weights = nn.Parameter(torch.zeros(classes))
        self.offsets = nn.Parameter(SPREAD * torch.randn(classes, INTRA, channels))
        self.intra_weights = nn.Parameter(torch.zeros(classes, INTRA))

    def joint(self, z: Tensor) -> Tensor:
        """Return log pi_c + log N(z; mu_c, I) at each location, (B, classes, H, W)."""
        squares = z.square().sum(1, keepdim=True) + self.centers.square().sum(1)[:, None, None]
        distances = squares - 2 * torch.einsum("bdhw,cd->bchw", z, self.centers)
        return self.weights.log_softmax(0)[:, None, None] - 0.5 * (distances + z.shape[1] * math.log(2 * math.pi))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) at each location, (B, H, W); the category is not known."""
        return self.joint(z).logsumexp(1)

    def intra_log_prob(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return log p(z) under the centers around that of the image's category, which itself is not trained."""
        centers = self.centers.detach()[labels][:, None] + self.offsets[labels]  # (B, INTRA, C)
        squares = z.square().sum(1, keepdim=True) + centers.square().sum(2)[..., None, None]
        distances = squares - 2 * torch.einsum("bdhw,bmd->bmhw", z, centers)
        weights = self.intra_weights[labels].log_softmax(1)[..., None, None]
        return (weights - 0.5 * (distances + z.shape[1] * math.log(2 * math.pi))).logsumexp(1)


class MixtureFlow(PlainFlow):
    """The plain flow with a `ClassMixture` for each scale.

    The loss is that of the plain flow, plus the same of the centers around the image's category, plus `weight` times
    -log p(category | z), plus a hundredth of `weight` times the entropy of that posterior.

    Args:
        channels: of the feature maps.
        classes: number of categories.
        weight: of the mutual information.
    """

    def __init__(self, channels: Sequence[int], classes: int, weight: float) -> None:
        super().__init__(channels)
        self.mixtures = nn.ModuleList(ClassMixture(classes, c) for c in channels)
        self.weight = weight

    def log_probs(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return log p at each location of each scale, (B, H, W), in nats."""
        scales = zip(self.mixtures, self.encode(maps), strict=True)
        return [cast(ClassMixture, mixture).log_prob(z) + log_det for mixture, (z, log_det) in scales]

    def loss(self, maps: Sequence[Tensor], labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the loss of a batch of images with these categories."""
        whole, intra, more = [], [], []
        for module, (z, log_det) in zip(self.mixtures, self.encode(maps), strict=True):
            mixture = cast(ClassMixture, module)
            joint = mixture.joint(z)
            whole.append(joint.logsumexp(1) + log_det)
            intra.append(mixture.intra_log_prob(z, labels) + log_det)
            posterior = joint.log_softmax(1)
            own = posterior.gather(1, labels[:, None, None, None].expand(-1, 1, *z.shape[2:]))
            entropy = -(posterior.exp() * posterior).sum(1)
            more.append(self.weight * (ENTROPY * entropy.mean() - own.mean()))
        return self.nll(whole) + self.nll(intra) + torch.stack(more).sum()
