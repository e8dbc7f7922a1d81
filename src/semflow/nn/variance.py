"""Variance heads: what a semantic-aware base is told of the variance (and the mean) at every location and scale."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError, ShapeError
from semflow.functional import inverse_gamma_kl, inverse_gamma_mode, inverse_gamma_prior, take_locations
from semflow.functional.inverse_gamma import narrow

__all__ = ["FixedVariance", "InverseGammaVariance", "LearnedVariance", "PredictedMean", "Statistics", "VarianceHead"]

LOG_BOUNDS = (math.log(1e-8), math.log(1e4))


class Statistics(NamedTuple):
    """What is known of the base distribution at every location of one scale.

    Args:
        beta: (B, 1, H, W) scale of the inverse gamma or, where `alpha` is None, the variance itself.
        alpha: (B, 1, H, W) shape of the inverse gamma, or None: the variance is certain.
        normal_shift, anomaly_shift: (B, 1, H, W) predicted shifts of the two means, or None.
        kl: (B, H, W) divergence from the prior in nats, or None where nothing is inferred.

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
        """The variance map (B, H, W): the mode of the inverse gamma, or the certain variance."""
        return (self.beta if self.alpha is None else inverse_gamma_mode(self.alpha, self.beta))[:, 0]

    def take(self, index: Tensor) -> "Statistics":
        """Those of some locations, as maps of height 1, see `semflow.functional.take_locations`."""
        return Statistics(*(None if x is None else take_locations(x, index) for x in self))  # type: ignore[arg-type]

    def detach(self) -> "Statistics":
        """The same without gradients."""
        return Statistics(*(None if x is None else x.detach() for x in self))  # type: ignore[arg-type]


class VarianceHead(nn.Module):
    """The interface: `head(images, features)` gives one `Statistics` a scale.

    Images are (B, 3, H, W) in [0, 1], features a sequence of (B, C_k, H_k, W_k); a head uses what it needs.

    Example:
        >>> class ByBrightness(VarianceHead):
        ...     def forward(self, images, features):
        ...         return [FixedVariance(images.mean().item())(images, [f])[0] for f in features]
        >>> (statistics,) = ByBrightness()(torch.full((1, 3, 8, 8), 0.5), [torch.randn(1, 4, 2, 2)])
        >>> statistics.variance().unique()
        tensor([0.5000])
    """

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """One `Statistics` a scale."""
        raise TypeError(f"{type(self).__name__} must define forward(images, features), one Statistics a scale")


class FixedVariance(VarianceHead):
    """One variance everywhere, not learned: models 3a and 3b of SANFlow's Table 6, where it is 0.1.

    Example:
        >>> head = FixedVariance(0.1)
        >>> [s.variance().shape for s in head(torch.rand(2, 3, 16, 16), [torch.zeros(2, 8, 4, 4)])]
        [torch.Size([2, 4, 4])]
    """

    @checked
    def __init__(self, variance: float = 0.1) -> None:
        super().__init__()
        if not variance > 0:
            raise ConfigError(f"variance must be positive, but got {variance}")
        self.variance = variance

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """One constant map a scale."""
        return [Statistics(_map(f).fill_(self.variance)) for f in features]

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.variance}"


class LearnedVariance(VarianceHead):
    """One learned variance a scale: the control that a predicted map has to beat.

    Args:
        scales: number of feature maps.
        start: the variance that training starts from.

    Example:
        >>> head = LearnedVariance(scales=1, start=1.0)
        >>> head(torch.rand(1, 3, 8, 8), [torch.zeros(1, 4, 2, 2)])[0].variance().max().item()
        1.0
    """

    @checked
    def __init__(self, scales: int = 3, start: float = 0.1) -> None:
        super().__init__()
        at_least(1, scales=scales)
        if not start > 0:
            raise ConfigError(f"start must be a positive variance, but got {start}")
        self.log_variance = nn.Parameter(torch.full((scales,), math.log(start)))

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """One constant map a scale, with a gradient."""
        if len(features) != len(self.log_variance):
            raise ShapeError(f"features must be {len(self.log_variance)} maps, one a scale, but got {len(features)}")
        variances = self.log_variance.clamp(*LOG_BOUNDS).exp()
        return [Statistics(v.expand_as(_map(f))) for v, f in zip(variances, features, strict=True)]


class InverseGammaVariance(VarianceHead):
    """The variance of SANFlow: IG(alpha_i, beta_i) at every location, from the network h (section 3.4.2).

    Training starts at the prior: the last bias of h is set to (log alpha_0, log beta_0) and its weights are made small
    (a default initialisation starts 114 nats away). Both logs are kept within those of 1e-8 and 1e4.

    Args:
        networks: one network for all scales, run once and pooled to each; or one a scale, each run on its features.
        window, mode: of the prior, see `semflow.functional.inverse_gamma_prior`.
        resize: `average` of the log-parameters over the cell, or `nearest` as published (of 64 outputs it uses 1).

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
        super().__init__()
        check_resize(resize)
        self.networks = nn.ModuleList([networks] if isinstance(networks, nn.Module) else networks)
        self.prior = inverse_gamma_prior(window, mode)
        self.resize = resize
        for network in self.networks:
            start_output(network, [math.log(p) for p in self.prior], outputs=(2, 4))

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """IG parameters and their divergence from the prior, a scale each."""
        return [self._statistics(maps) for maps in run_networks(self.networks, images, features, self.resize)]

    def _statistics(self, maps: Tensor) -> Statistics:
        alpha, beta = maps[:, :2].clamp(*LOG_BOUNDS).exp().split(1, dim=1)
        kl = inverse_gamma_kl(alpha, beta, *self.prior)[:, 0]
        if maps.shape[1] == 4:
            return Statistics(beta, alpha, maps[:, 2:3], maps[:, 3:4], kl)
        return Statistics(beta, alpha, kl=kl)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"prior=IG({self.prior[0]:.4g}, {self.prior[1]:.4g}), resize={self.resize}"


class PredictedMean(VarianceHead):
    """Predicted means with a fixed variance: model 3b of SANFlow's Table 6, kept for the ablation.

    The network gives two maps, the shifts of the normal and of the anomalous mean, which start at zero. For model 3c
    (both predicted) give `InverseGammaVariance` a network of four outputs.

    Args:
        networks: as in `InverseGammaVariance`, of two outputs.
        variance: the fixed variance.
        resize: as in `InverseGammaVariance`.

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
        super().__init__()
        check_resize(resize)
        self.networks = nn.ModuleList([networks] if isinstance(networks, nn.Module) else networks)
        self.fixed = FixedVariance(variance)
        self.resize = resize
        for network in self.networks:
            start_output(network, [], outputs=(2,))

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Statistics]:
        """The fixed variance and the two shifts, a scale each."""
        maps = run_networks(self.networks, images, features, self.resize)
        fixed = self.fixed(images, features)
        return [Statistics(s.beta, None, m[:, :1], m[:, 1:2]) for s, m in zip(fixed, maps, strict=True)]


def check_resize(resize: str) -> None:
    """Refuse a way to resize that does not exist.

    Raises:
        ConfigError: `resize` is neither "average" nor "nearest".
    """
    if resize not in ("average", "nearest"):
        raise ConfigError(f"resize must be average or nearest, but got {resize!r}")


def start_output(network: nn.Module, biases: Sequence[float], outputs: Sequence[int]) -> None:
    """Make a network's last layer start at `biases` (zero beyond them) with small weights.

    Raises:
        ConfigError: the network has no layer `output` with a bias, or has not one of the numbers of `outputs`.
    """
    output = getattr(network, "output", None)
    if not isinstance(output, nn.Conv2d | nn.Linear) or output.bias is None:
        raise ConfigError(f"networks must end in a layer named output with a bias, but got {type(network).__name__}")
    if len(output.bias) not in outputs:
        raise ConfigError(f"networks must have {' or '.join(map(str, outputs))} outputs, but got {len(output.bias)}")
    with torch.no_grad():
        output.weight.mul_(0.1)
        output.bias.zero_()
        output.bias[: len(biases)] = torch.tensor(biases)


def run_networks(networks: nn.ModuleList, images: Tensor, features: Sequence[Tensor], resize: str) -> list[Tensor]:
    """The networks' maps at each scale's size, float32 at least: one network serves all scales, or each has its own."""
    if len(networks) not in (1, len(features)):
        raise ConfigError(f"networks must be 1 or {len(features)}, one a scale, but got {len(networks)}")
    outputs = [
        network(f if getattr(network, "source", "image") == "features" else images)
        for network, f in zip(networks, features[: len(networks)], strict=True)
    ]
    outputs *= len(features) // len(outputs)
    sizes = [(f.shape[2], f.shape[3]) for f in features]
    return [_resize(narrow(maps, maps), size, resize) for maps, size in zip(outputs, sizes, strict=True)]


def _resize(maps: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    if mode == "nearest" or maps.shape[2] < size[0]:
        return F.interpolate(maps, size=size, mode="nearest")
    return F.adaptive_avg_pool2d(maps, size)


def _map(features: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    return torch.empty(batch, 1, height, width, device=features.device, dtype=narrow(features[:0], features).dtype)
