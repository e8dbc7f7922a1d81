"""Base distributions of a flow: a standard normal, or a normal that depends on the location."""

import math

import torch
from torch import Tensor, nn

from semflow._validation import checked
from semflow.errors import ConfigError, ShapeError
from semflow.functional import Form, normal_log_odds, normal_log_prob
from semflow.functional.inverse_gamma import filled, narrow
from semflow.nn import Statistics


class Base(nn.Module):
    """Base class of base distributions, which return one log-probability per location.

    A subclass defines `log_prob` and, if it has an anomalous distribution, `log_odds`. A base whose `normality` is no
    log density, such as minus a distance, says `is_density = False`, and no log-det is added to it.

    Example:
        >>> class Laplace(Base):
        ...     def log_prob(self, z, statistics=None, anomaly_mask=None):
        ...         return -(z.abs() + math.log(2.0)).sum(1)
        >>> Laplace().log_prob(torch.zeros(2, 3, 4, 5)).shape
        torch.Size([2, 4, 5])
    """

    is_density: bool = True
    """True if `normality` is a log-density per dimension."""

    def log_prob(self, z: Tensor, statistics: Statistics | None = None, anomaly_mask: Tensor | None = None) -> Tensor:
        """Compute log p(z) in nats at every location, (B, H, W).

        Args:
            z: Latents (B, C, H, W).
            statistics: Statistics of the locations, or None.
            anomaly_mask: Mask (B, H, W), positive at anomalous locations; None if all are normal.
        """
        raise TypeError(f"{type(self).__name__} must define log_prob, but got a class without it")

    def log_odds(self, z: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Compute log p(z | normal) - log p(z | anomalous) at every location, (B, H, W)."""
        raise TypeError(f"{type(self).__name__} must define log_odds, but got a base without an anomalous distribution")

    def normality(self, z: Tensor, statistics: Statistics | None = None, leave_out: Tensor | None = None) -> Tensor:
        """Compute what scores are made of at every location, (B, H, W): log p(z) / C, in nats per dimension.

        Args:
            z: Latents (B, C, H, W).
            statistics: Statistics of the locations, or None.
            leave_out: (B,) int64, the index of each image among those that the base was fitted to, whose own latents
                are then left out; None leaves out nothing. Bases that store no latents ignore it.
        """
        return self.log_prob(z, statistics) / z.shape[1]

    def image_score(self, z: Tensor, normality: Tensor, leave_out: Tensor | None = None) -> Tensor | None:
        """Compute the score (B,) of whole images, higher for anomalous ones; None leaves it to the anomaly map.

        Args:
            z: Latents (B, C, H, W).
            normality: Their `normality`, (B, H, W).
            leave_out: As in `normality`; given only to a `FittedBase` that `leaves_out` images.
        """
        return None


class StandardNormal(Base):
    """N(0, I) at every location, the base of CFLOW-AD and FastFlow; it ignores statistics and masks.

    Example:
        >>> StandardNormal().log_prob(torch.zeros(2, 4, 3, 3)).shape
        torch.Size([2, 3, 3])
    """

    def log_prob(self, z: Tensor, statistics: Statistics | None = None, anomaly_mask: Tensor | None = None) -> Tensor:
        """Compute -C/2 log 2pi - ||z||^2 / 2, (B, H, W)."""
        return -0.5 * (z.shape[1] * math.log(2 * math.pi) + narrow(z).square().sum(1))


class SemanticGaussian(Base):
    """Normal N(m, s_i I) with one mean for normal, one for anomalous locations (SANFlow, Eq. 5 to 8).

    The variance s_i of each location comes from the statistics, inverse-gamma distributed or known.

    Args:
        normal_mean: Mean of normal locations, 0 in the paper.
        anomaly_mean: Mean of anomalous locations, 1 in the paper.
        form: How an inverse-gamma variance enters, see `semflow.functional.normal_log_prob`. `reference` follows the
            published code, which uses the mode of the variance at test time and, without gradients, for anomalous
            locations.

    Example:
        >>> from semflow.nn import Statistics
        >>> statistics = Statistics(beta=torch.ones(1, 1, 2, 2))
        >>> SemanticGaussian().log_odds(torch.zeros(1, 4, 2, 2), statistics)[0].tolist()
        [[2.0, 2.0], [2.0, 2.0]]
    """

    @checked
    def __init__(self, normal_mean: float = 0.0, anomaly_mean: float = 1.0, form: Form = "exact") -> None:
        super().__init__()
        if normal_mean == anomaly_mean:
            raise ConfigError(f"anomaly_mean must differ from normal_mean, but got {anomaly_mean} for both")
        self.normal_mean, self.anomaly_mean, self.form = normal_mean, anomaly_mean, form

    def log_prob(self, z: Tensor, statistics: Statistics | None = None, anomaly_mask: Tensor | None = None) -> Tensor:
        """Compute log p(z) by Eq. 6 at normal and Eq. 7 at anomalous locations, (B, H, W)."""
        statistics, normal, anomalous = self._with_means(statistics)
        if anomaly_mask is None:
            form: Form = "mode" if self.form == "reference" and not self.training else self.form
            return self._normal(z, statistics, normal, form)
        expected = (z.shape[0], *z.shape[2:])
        if anomaly_mask.shape != expected:
            raise ShapeError(f"anomaly_mask must be (B, H, W) = {expected}, but got {tuple(anomaly_mask.shape)}")
        marked = anomaly_mask > 0
        if self.form == "reference":
            log_normal = self._normal(z, statistics, normal, "reference")
            return torch.where(marked, self._normal(z, statistics.detach(), anomalous, "mode"), log_normal)
        like = narrow(z[:0])
        anomalous, normal = filled(anomalous, like), filled(normal, like)
        return self._normal(z, statistics, torch.where(marked[:, None], anomalous, normal), self.form)

    def log_odds(self, z: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Compute the logit of s(z) in Eq. 8, (B, H, W)."""
        statistics, normal, anomalous = self._with_means(statistics)
        if statistics.alpha is None:
            return normal_log_odds(z, torch.ones_like(statistics.beta), statistics.beta, normal, anomalous)
        return normal_log_odds(z, statistics.alpha, statistics.beta, normal, anomalous, self.form)

    def _normal(self, z: Tensor, statistics: Statistics, mean: Tensor | float, form: Form) -> Tensor:
        if statistics.alpha is not None:
            return normal_log_prob(z, statistics.alpha, statistics.beta, mean, form)
        variance = narrow(statistics.beta)[:, 0]
        q = (narrow(z) - mean).square().sum(1)
        return -0.5 * (z.shape[1] * (math.log(2 * math.pi) + torch.log(variance)) + q / variance)

    def _with_means(self, statistics: Statistics | None) -> tuple[Statistics, Tensor | float, Tensor | float]:
        """Return the statistics, which must be given, and both means."""
        if statistics is None:
            raise ShapeError("statistics must be given, but got None; take them from a variance head")
        means, shifts = (self.normal_mean, self.anomaly_mean), (statistics.normal_shift, statistics.anomaly_shift)
        normal, anomalous = (m if s is None else m + narrow(s) for m, s in zip(means, shifts, strict=True))
        return statistics, normal, anomalous

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        return f"normal_mean={self.normal_mean}, anomaly_mean={self.anomaly_mean}, form={self.form}"
