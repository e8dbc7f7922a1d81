"""SANFlow's objective (Eq. 9), L = NLL + lambda_1 BCE + lambda_2 KL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow._validation import at_least, check_arguments
from semflow.bases import Base, StandardNormal
from semflow.errors import ConfigError, ShapeError
from semflow.flows import Event
from semflow.nn import Statistics

__all__ = [
    "PRESETS", "Objective", "Terms", "boundary_loss", "largest_over_locations", "log_likelihood", "mean_over_locations",
    "means_over_locations",
]  # fmt: skip


class Terms(NamedTuple):
    """The loss, with gradients, and its terms: means over locations in nats, NLL and KL per dimension.

    Example:
        >>> terms = Terms(*torch.tensor([1.5, 1.2, 0.2, 0.5]))
        >>> terms.nll.item() < terms.total.item()
        True
    """

    total: Tensor
    nll: Tensor
    bce: Tensor
    kl: Tensor


def log_likelihood(log_prob: Tensor, log_det: Tensor, event: Event) -> Tensor:
    """Compute log p(x) = log p(z) + log |det dz/dx| (SANFlow, Eq. 3), in the shape of `log_det`.

    Args:
        log_prob: Log-probability of a base, (B, H, W).
        log_det: (B, H, W) from a `"location"` flow, (B,) from a `"sample"` flow.
        event: Event of the flow.

    Example:
        >>> log_likelihood(torch.zeros(4, 2, 4), torch.ones(4), "sample").shape
        torch.Size([4])
    """
    expected = log_prob.shape if event == "location" else log_prob.shape[:1]
    if log_det.shape != expected:
        raise ShapeError(f"log_det must be {tuple(expected)} for event {event!r}, but got {tuple(log_det.shape)}")
    return (log_prob if event == "location" else log_prob.sum((1, 2))) + log_det


def mean_over_locations(x: Tensor, ignore: Tensor | None = None, dim: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """Compute the mean over the locations that are not ignored; 0 if all are.

    Args:
        x: Map (B, H, W); the plain mean is taken of any other shape.
        ignore: Mask (B, H, W), positive at ignored locations, or None.
        dim: Axes of the mean.

    Example:
        >>> mean_over_locations(torch.tensor([[[1.0, 2.0, 6.0]]]), torch.tensor([[[0, 0, 1]]])).item()
        1.5
    """
    if ignore is None or x.dim() != 3:
        return x.mean(dim) if x.dim() == 3 else x.mean()
    counted = ~(ignore > 0)
    return torch.where(counted, x, 0.0).sum(dim) / counted.sum(dim).clamp(min=1)


def means_over_locations(maps: Sequence[Tensor], ignore: Tensor | None = None) -> Sequence[Tensor]:
    """Compute `mean_over_locations` for several maps; distributed training replaces it by a mean over processes.

    Example:
        >>> means_over_locations([torch.ones(2, 4, 4), torch.zeros(2, 4, 4)])
        [tensor(1.), tensor(0.)]
    """
    return [mean_over_locations(x, ignore) for x in maps]


def largest_over_locations(x: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Compute the maximum over the locations that are not ignored, without a gradient; -inf if all are.

    The arguments are those of `mean_over_locations`; distributed training replaces it by a maximum over processes.

    Example:
        >>> largest_over_locations(torch.tensor([[[1.0, 2.0, 6.0]]]), torch.tensor([[[0, 0, 1]]])).item()
        2.0
    """
    x = x.detach()
    return (x if ignore is None or x.dim() != 3 else torch.where(ignore > 0, -torch.inf, x)).amax()


def boundary_loss(
    log_prob: Tensor,
    anomalous: Tensor,
    ignore: Tensor | None = None,
    quantile: float = 0.05,
    margin: float = 0.1,
    scale: float = 10.0,
) -> Tensor:
    """Compute BGAD's boundary loss (Yao et al., CVPR 2023).

    With x = log p / scale, b = the `quantile` of x over the normal locations, as a constant:
    L = mean(b - x over normal locations with x < b) + mean(x - b + margin over anomalous ones with x > b - margin).
    A mean of nothing is 0, and so is the loss without normal locations.

    Args:
        log_prob: Log-probability under the normal distribution per dimension, in nats.
        anomalous: Mask of the same shape.
        ignore: Mask of locations that do not count, or None.
        quantile: Position of the boundary, beta.
        margin: Distance tau of the anomalous boundary.
        scale: Normalizer of log p.

    Example:
        >>> log_prob = torch.tensor([-30.0, -10.0, -10.0, -10.0])
        >>> boundary_loss(log_prob, torch.tensor([0, 0, 0, 1]), quantile=0.5).item()
        2.099...
    """
    counted = torch.ones_like(anomalous, dtype=torch.bool) if ignore is None else ~(ignore > 0)
    x, normal, anomalous = log_prob / scale, counted & ~(anomalous > 0), counted & (anomalous > 0)
    order = torch.where(normal, x.detach(), torch.inf).flatten().sort().values
    b = order[(normal.sum() * quantile).long().clamp(max=order.numel() - 1)]
    below, above = normal & (x < b), anomalous & (x > b - margin) & (b < torch.inf)

    def mean(penalty: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, penalty, 0.0).sum() / where.sum().clamp(min=1)

    return mean(b - x, below) + mean(x - (b - margin), above)


@dataclass(frozen=True)
class Objective:
    """Sum of negative log-likelihood, cross-entropy of the log-odds, and divergence from the variance's prior.

    With C channels and means over all locations:
    L = mean(-log p(x) + kl KL) / C + bce mean(BCE(sigmoid(log-odds / T), normal)).

    NLL and KL are both per dimension, so at `kl = 1` the first term is the negative evidence lower bound of the
    hierarchical model, whose best variance is the conjugate posterior IG(alpha_0 + C/2, beta_0 + ||z||^2 / 2).

    Args:
        bce: lambda_1; 0 removes the term.
        kl: lambda_2; 0 removes the term.
        temperature: T, which divides the log-odds because they grow with C; None for C.
        squash: Use -log sigmoid(-L) at every location, as the published code does. It saturates where the likelihood is
            high, so that training concentrates on the worst locations.
        double_softmax: Apply softmax to probabilities in the BCE, as the published code does.
        boundary: Weight of `boundary_loss` of log p(x) / C under the normal distribution, for which a `StandardNormal`
            base learns from normal locations only; 0 removes the term. It needs all locations of a step at once.
        tilt: T of the tilted mean T log mean exp(L / T) in the place of the mean of L = -log p(x) / C (Li et al., ICLR
            2021): the mean for a large T, the maximum for a small one. None takes the mean.
        means: Function of maps and an ignore mask that returns their means; distributed training replaces it.
        largest: Function of a map and an ignore mask that returns its maximum; distributed training replaces it.

    Example:
        >>> from semflow.bases import StandardNormal
        >>> z, log_det = torch.randn(2, 8, 4, 4), torch.zeros(2, 4, 4)
        >>> terms = Objective(bce=0.0)(z, log_det, "location", StandardNormal())
        >>> bool(terms.total == terms.nll)
        True
    """

    bce: float = 1.0
    kl: float = 0.2
    temperature: float | None = None
    squash: bool = False
    double_softmax: bool = False
    tilt: float | None = None
    boundary: float = 0.0
    means: Callable[[Sequence[Tensor], Tensor | None], Sequence[Tensor]] = field(
        default=means_over_locations, repr=False, compare=False
    )
    largest: Callable[[Tensor, Tensor | None], Tensor] = field(
        default=largest_over_locations, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_arguments(Objective.__init__, vars(self))
        at_least(0, bce=self.bce, kl=self.kl, boundary=self.boundary)
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"temperature must be positive or None, but got {self.temperature}")
        if self.tilt is not None and not self.tilt > 0:
            raise ConfigError(f"tilt must be positive or None, but got {self.tilt}")
        if self.tilt is not None and self.squash:
            raise ConfigError(f"tilt must be None for a squashed loss, but got {self.tilt}")

    def __call__(
        self,
        z: Tensor,
        log_det: Tensor,
        event: Event,
        base: Base,
        statistics: Statistics | None = None,
        anomaly_mask: Tensor | None = None,
        ignore: Tensor | None = None,
    ) -> Terms:
        """Compute the loss of one scale.

        Args:
            z: Latents (B, C, H, W).
            log_det: (B, H, W) or (B,), depending on `event`.
            event: Event of the flow.
            base: Base that computes log p(z) and the log-odds.
            statistics: Statistics of the locations, if the base needs them.
            anomaly_mask: Mask (B, H, W), positive at anomalous locations; None for all normal and no BCE.
            ignore: Mask (B, H, W), positive at locations that are left out of the means. The likelihood of a
                `"sample"` flow covers the whole sample and is unaffected.
        """
        batch, channels, height, width = z.shape
        if ignore is not None and ignore.shape != (batch, height, width):
            raise ShapeError(f"ignore must be (B, H, W) = {(batch, height, width)}, but got {tuple(ignore.shape)}")
        bounded = None if anomaly_mask is None or not self.boundary else (anomaly_mask, ignore)
        if bounded and event != "location":
            raise ConfigError(f"boundary must be 0 for a flow of event {event!r}, but got {self.boundary}")
        if anomaly_mask is not None and bounded and isinstance(base, StandardNormal):
            ignore = (anomaly_mask > 0) if ignore is None else (anomaly_mask > 0) | (ignore > 0)
        likelihood = log_likelihood(base.log_prob(z, statistics, anomaly_mask), log_det, event)
        nll = -likelihood / (channels if event == "location" else channels * height * width)
        zero = torch.zeros((), device=z.device)
        kl = zero if statistics is None or statistics.kl is None else statistics.kl / channels
        bce = zero
        if self.bce and anomaly_mask is not None:
            bce = self._cross_entropy(base.log_odds(z, statistics), anomaly_mask > 0, channels)
        nll_mean, bce_mean, kl_mean = self.means((nll, bce, kl), ignore)
        if self.squash:
            divergence = kl * self.kl
            if nll.dim() == 1:
                divergence = mean_over_locations(divergence, ignore, (1, 2))
            (total,) = self.means((F.softplus(nll + divergence + self.bce * bce_mean / channels),), ignore)
        else:
            tilted = nll_mean if self.tilt is None else self._tilted_mean(nll, ignore, self.tilt)
            total = tilted + self.kl * kl_mean + self.bce * bce_mean
        if bounded:
            normal = log_likelihood(base.log_prob(z, statistics), log_det, event) / channels
            total = total + self.boundary * boundary_loss(normal, *bounded)
        return Terms(total, nll_mean.detach(), bce_mean.detach(), kl_mean.detach())

    def _tilted_mean(self, nll: Tensor, ignore: Tensor | None, tilt: float) -> Tensor:
        """Compute T log mean exp(L / T); 0 if all locations are ignored."""
        largest = self.largest(nll, ignore)
        largest = torch.where(largest == -torch.inf, 0.0, largest)
        exponent = ((nll - largest) / tilt).clamp(max=0)  # which changes ignored locations only
        mean, shifted = self.means((exponent.exp(), exponent.expm1()), ignore)
        # Near 1, the mean has no digits left for its logarithm; far below, the shifted mean has none.
        tiny = torch.finfo(mean.dtype).tiny
        log_mean = torch.where(shifted > -0.5, shifted.clamp(min=-0.5).log1p(), mean.clamp(min=tiny).log())
        return largest + tilt * log_mean

    def _cross_entropy(self, odds: Tensor, anomalous: Tensor, channels: int) -> Tensor:
        logits = 2 * torch.sigmoid(odds) - 1 if self.double_softmax else odds / (self.temperature or channels)
        return F.binary_cross_entropy_with_logits(logits, (~anomalous).to(odds), reduction="none")


PRESETS: dict[str, Objective] = {
    "paper": Objective(bce=1.0, kl=0.2),
    "reference": Objective(bce=0.2, kl=1.0, squash=True, double_softmax=True),
}
"""Weights printed in the paper, and those of its published code, where the two are exchanged."""
