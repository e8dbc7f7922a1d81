"""Variance heads, which give a base its variance (and mean shifts) at every location of every scale."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked, positive
from semflow.errors import ConfigError, ShapeError
from semflow.functional import inverse_gamma_kl, inverse_gamma_mode, inverse_gamma_prior, take_locations
from semflow.functional.inverse_gamma import narrow

LOG_BOUNDS = (math.log(1e-8), math.log(1e4))


class Statistics(NamedTuple):
    """Parameters of the base distribution at every location of one scale.

    Args:
        beta: Scale of the inverse gamma or, if `alpha` is None, the variance itself, (B, 1, H, W).
        alpha: Shape of the inverse gamma (B, 1, H, W), or None for a known variance.
        normal_shift: Predicted shift of the normal mean (B, 1, H, W), or None.
        anomaly_shift: Predicted shift of the anomalous mean (B, 1, H, W), or None.
        kl: Divergence from the variance's prior in nats, (B, H, W), or None for a known variance.

    Example:
        >>> Statistics(beta=torch.full((1, 1, 2, 2), 0.1)).variance().shape
        torch.Size([1, 2, 2])
    """

    beta: Tensor
    alpha: Tensor | None = None
    normal_shift: Tensor | None = None
    anomaly_shift: Tensor | None = None
    kl: Tensor | None = None

    def variance(self) -> Tensor:
        """Return the variance map (B, H, W), which is the mode of the inverse gamma or the known variance."""
        return (self.beta if self.alpha is None else inverse_gamma_mode(self.alpha, self.beta))[:, 0]

    def take(self, index: Tensor) -> "Statistics":
        """Return the statistics of n locations as maps of height 1, see `semflow.functional.take_locations`."""
        return Statistics(*(None if x is None else take_locations(x, index) for x in self))  # type: ignore[arg-type]

    def detach(self) -> "Statistics":
        """Return the statistics without gradients."""
        return Statistics(*(None if x is None else x.detach() for x in self))  # type: ignore[arg-type]


class VarianceHead(nn.Module):
    """Base class of variance heads; `head(images, features)` returns one `Statistics` per scale.

    Images are (B, 3, H, W) in [0, 1], features a sequence of maps (B, C_k, H_k, W_k). A head may use either.

    Example:
        >>> class ByBrightness(VarianceHead):
        ...     def forward(self, images, features):
        ...         return [FixedVariance(images.mean().item())(images, [f])[0] for f in features]
        >>> (statistics,) = ByBrightness()(torch.full((1, 3, 8, 8), 0.5), [torch.randn(1, 4, 2, 2)])
        >>> statistics.variance().unique()
        tensor([0.5000])
    """

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """Return one `Statistics` per scale."""
        raise TypeError(f"{type(self).__name__} must define forward(images, features), but got a class without it")


class FixedVariance(VarianceHead):
    """Constant variance, as in models 3a and 3b of SANFlow's Table 6, where it is 0.1.

    Args:
        variance: Positive variance.

    Example:
        >>> FixedVariance(0.1)(torch.rand(2, 3, 16, 16), [torch.zeros(2, 8, 4, 4)])[0].variance().shape
        torch.Size([2, 4, 4])
    """

    @checked
    def __init__(self, variance: float = 0.1) -> None:
        super().__init__()
        positive(variance=variance)
        self.variance = variance

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """Return one constant map per scale."""
        return [Statistics(_map(f).fill_(self.variance)) for f in features]

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"{self.variance}"


class LearnedVariance(VarianceHead):
    """Learned variance per scale, the baseline for a predicted variance map.

    Args:
        scales: Number of feature maps.
        start: Initial variance.

    Example:
        >>> LearnedVariance(start=1.0)(torch.rand(1, 3, 8, 8), [torch.zeros(1, 4, 2, 2)] * 3)[0].variance().max().item()
        1.0
    """

    @checked
    def __init__(self, scales: int = 3, start: float = 0.1) -> None:
        super().__init__()
        at_least(1, scales=scales)
        positive(start=start)
        self.log_variance = nn.Parameter(torch.full((scales,), math.log(start)))

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """Return one constant map per scale, with gradients."""
        if len(features) != len(self.log_variance):
            raise ShapeError(f"features must have {len(self.log_variance)} maps, but got {len(features)}")
        variances = self.log_variance.clamp(*LOG_BOUNDS).exp()
        return [Statistics(v.expand_as(_map(f))) for v, f in zip(variances, features, strict=True)]


class _PredictingHead(VarianceHead):
    """Head with networks whose last layer starts at given biases, filled up with zeros, with small weights."""

    def __init__(
        self, networks: nn.Module | Sequence[nn.Module], biases: Sequence[float], outputs: Sequence[int], resize: str
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList([networks] if isinstance(networks, nn.Module) else networks)
        self.resize = resize
        for network in self.networks:
            output = getattr(network, "output", None)
            if not isinstance(output, nn.Conv2d | nn.Linear) or output.bias is None:
                name = type(network).__name__
                raise ConfigError(f"networks must end in a layer named output with a bias, but got {name}")
            if len(output.bias) not in outputs:
                expected = " or ".join(map(str, outputs))
                raise ConfigError(f"networks must have {expected} outputs, but got {len(output.bias)}")
            with torch.no_grad():
                output.weight.mul_(0.1)
                output.bias.zero_()
                output.bias[: len(biases)] = torch.tensor(biases)

    def _maps(self, images: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return a map for each scale at its size, float32 or wider."""
        if len(self.networks) not in (1, len(features)):
            raise ConfigError(f"networks must have 1 or {len(features)} members, but got {len(self.networks)}")
        outputs = [
            network(f if getattr(network, "source", "image") == "features" else images)
            for network, f in zip(self.networks, features[: len(self.networks)], strict=True)
        ]
        outputs *= len(features) // len(outputs)
        sizes = [(f.shape[2], f.shape[3]) for f in features]
        return [_resize(narrow(maps, maps), size, self.resize) for maps, size in zip(outputs, sizes, strict=True)]


class InverseGammaVariance(_PredictingHead):
    """Inverse-gamma variance IG(alpha_i, beta_i) at every location, predicted by the network h (SANFlow, 3.4.2).

    Training starts at the prior: the last bias of h is set to (log alpha_0, log beta_0) and its last weights are scaled
    by 0.1 (the default initialization starts 114 nats away). alpha and beta are clamped to [1e-8, 1e4].

    Args:
        networks: One network for all scales, run once and resized to each, or one network per scale.
        window: Receptive field of the prior, see `semflow.functional.inverse_gamma_prior`.
        mode: Mode of the prior.
        resize: `average` the log-parameters over each cell, or take the `nearest` as published (1 of 64 outputs).

    Example:
        >>> from semflow.nn import StatisticsNetwork
        >>> head = InverseGammaVariance(StatisticsNetwork(stride=4))
        >>> (statistics,) = head(torch.rand(2, 3, 32, 32), [torch.zeros(2, 40, 4, 4)])
        >>> statistics.alpha.shape, statistics.kl.shape
        (torch.Size([2, 1, 4, 4]), torch.Size([2, 4, 4]))
    """

    @checked
    def __init__(
        self,
        networks: nn.Module | Sequence[nn.Module],
        window: float = 11,
        mode: float = 0.1,
        resize: Literal["average", "nearest"] = "average",
    ) -> None:
        prior = inverse_gamma_prior(window, mode)
        super().__init__(networks, [math.log(p) for p in prior], (2, 4), resize)
        self.prior = prior

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """Return the inverse-gamma parameters and their divergence from the prior for each scale."""
        return [self._statistics(maps) for maps in self._maps(images, features)]

    def _statistics(self, maps: Tensor) -> Statistics:
        alpha, beta = maps[:, :2].clamp(*LOG_BOUNDS).exp().split(1, dim=1)
        normal_shift, anomaly_shift = maps[:, 2:].split(1, dim=1) if maps.shape[1] == 4 else (None, None)
        return Statistics(beta, alpha, normal_shift, anomaly_shift, inverse_gamma_kl(alpha, beta, *self.prior)[:, 0])

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"prior=IG({self.prior[0]:.4g}, {self.prior[1]:.4g}), resize={self.resize}"


class PredictedMean(_PredictingHead):
    """Predicted means with a constant variance, model 3b of SANFlow's Table 6.

    The network predicts the shifts of the normal and of the anomalous mean, which start at zero. For model 3c, which
    predicts means and variance, give `InverseGammaVariance` a network with four outputs.

    Args:
        networks: As in `InverseGammaVariance`, with two outputs.
        variance: Constant variance.
        resize: As in `InverseGammaVariance`.

    Example:
        >>> from semflow.nn import StatisticsNetwork
        >>> head = PredictedMean(StatisticsNetwork(stride=4))
        >>> head(torch.rand(1, 3, 16, 16), [torch.zeros(1, 8, 4, 4)])[0].normal_shift.shape
        torch.Size([1, 1, 4, 4])
    """

    @checked
    def __init__(
        self,
        networks: nn.Module | Sequence[nn.Module],
        variance: float = 0.1,
        resize: Literal["average", "nearest"] = "average",
    ) -> None:
        super().__init__(networks, [], (2,), resize)
        self.fixed = FixedVariance(variance)

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """Return the constant variance and the two shifts for each scale."""
        maps, fixed = self._maps(images, features), self.fixed(images, features)
        return [Statistics(s.beta, None, m[:, :1], m[:, 1:2]) for s, m in zip(fixed, maps, strict=True)]


def _resize(maps: Tensor, size: tuple[int, int], resize: str) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    if resize == "nearest" or maps.shape[2] < size[0]:
        return F.interpolate(maps, size=size, mode="nearest")
    return F.adaptive_avg_pool2d(maps, size)


def _map(features: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    return torch.empty(batch, 1, height, width, device=features.device, dtype=narrow(features[:0], features).dtype)
