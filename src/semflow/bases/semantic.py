"""The base distributions of a flow: the same normal everywhere, or one that differs from location to location."""

import math

import torch
from torch import Tensor, nn

from semflow._validation import checked
from semflow.errors import ConfigError, ShapeError
from semflow.functional import FORMS, Form, normal_log_odds, normal_log_prob
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Statistics

__all__ = ["Base", "SemanticGaussian", "StandardNormal"]


class Base(nn.Module):
    """The interface: log-probabilities per location, (B, H, W), and no shape but that.

    `log_prob(z, statistics, anomaly_mask)` with z (B, C, H, W), statistics of its locations or None, and a mask
    (B, H, W) that is 1 where anomalous; `log_odds(z, statistics)` of normal against anomalous.

    Example:
        >>> class Laplace(Base):
        ...     def log_prob(self, z, statistics=None, anomaly_mask=None):
        ...         return -(z.abs() + math.log(2.0)).sum(1)
        >>> Laplace().log_prob(torch.zeros(2, 3, 4, 5)).shape
        torch.Size([2, 4, 5])
    """

    def log_prob(self, z: Tensor, statistics: Statistics | None = None, anomaly_mask: Tensor | None = None) -> Tensor:
        """Log p(z) at every location, (B, H, W)."""
        raise TypeError(f"{type(self).__name__} must define log_prob(z, statistics, anomaly_mask)")

    def log_odds(self, z: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Log p(z | normal) - log p(z | anomalous) at every location, (B, H, W)."""
        raise TypeError(f"{type(self).__name__} has no anomalous distribution, so it has no log_odds")


class StandardNormal(Base):
    """N(0, I) at every location, whatever the statistics: the base of CFLOW-AD and FastFlow.

    Example:
        >>> StandardNormal().log_prob(torch.zeros(2, 4, 3, 3)).shape
        torch.Size([2, 3, 3])
    """

    def log_prob(self, z: Tensor, statistics: Statistics | None = None, anomaly_mask: Tensor | None = None) -> Tensor:
        """-C/2 log 2pi - ||z||^2 / 2, (B, H, W)."""
        return -0.5 * (z.shape[1] * math.log(2 * math.pi) + narrow(z).square().sum(1))


class SemanticGaussian(Base):
    """N(m, s_i I): one mean for normal and one for anomalous locations, a variance for each (SANFlow, Eq. 5 to 8).

    The variance comes with the statistics: inverse-gamma distributed (`form` says how it enters), or certain.

    Args:
        normal_mean: 0 in the paper.
        anomaly_mean: 1 in the paper: the margin.
        form: see `semflow.functional.normal_log_prob`. `reference` follows the published code in full: the mode of the
            variance at test time and, without a gradient, for anomalous locations.

    Example:
        >>> from semflow.nn import Statistics
        >>> base, z = SemanticGaussian(), torch.zeros(1, 4, 2, 2)
        >>> statistics = Statistics(beta=torch.ones(1, 1, 2, 2))
        >>> mask = torch.tensor([[[0, 1], [0, 0]]])
        >>> (base.log_prob(z, statistics) - base.log_prob(z, statistics, mask))[0].tolist()
        [[0.0, 2.0], [0.0, 0.0]]
    """

    @checked
    def __init__(self, normal_mean: float = 0.0, anomaly_mean: float = 1.0, form: Form = "exact") -> None:
        super().__init__()
        if form not in FORMS:
            raise ConfigError(f"form must be one of {', '.join(FORMS)}, but got {form!r}")
        if normal_mean == anomaly_mean:
            raise ConfigError(f"anomaly_mean must differ from normal_mean, but both are {normal_mean}")
        self.normal_mean, self.anomaly_mean, self.form = normal_mean, anomaly_mean, form

    def log_prob(self, z: Tensor, statistics: Statistics | None = None, anomaly_mask: Tensor | None = None) -> Tensor:
        """Eq. 5: Eq. 6 where the mask is 0 or absent, Eq. 7 where it is 1.

        Raises:
            ShapeError: no statistics, or a mask of another shape than (B, H, W).
        """
        statistics = self._given(statistics)
        normal, anomalous = self._means(statistics)
        if anomaly_mask is None:
            form: Form = "mode" if self.form == "reference" and not self.training else self.form
            return self._normal(z, statistics, normal, form)
        if anomaly_mask.shape != (z.shape[0], *z.shape[2:]):
            raise ShapeError(
                f"anomaly_mask must be (B, H, W) = {(z.shape[0], *z.shape[2:])}, but got {tuple(anomaly_mask.shape)}"
            )
        marked = anomaly_mask > 0
        if self.form == "reference":
            log_normal = self._normal(z, statistics, normal, "reference")
            return torch.where(marked, self._normal(z, statistics.detach(), anomalous, "mode"), log_normal)
        like = narrow(z[:0])
        anomalous, normal = (torch.as_tensor(m, dtype=like.dtype, device=like.device) for m in (anomalous, normal))
        return self._normal(z, statistics, torch.where(marked[:, None], anomalous, normal), self.form)

    def log_odds(self, z: Tensor, statistics: Statistics | None = None) -> Tensor:
        """The logit of s(z) in Eq. 8, (B, H, W)."""
        statistics = self._given(statistics)
        normal, anomalous = self._means(statistics)
        if statistics.alpha is None:
            return normal_log_odds(z, torch.ones_like(statistics.beta), statistics.beta, normal, anomalous)
        return normal_log_odds(z, statistics.alpha, statistics.beta, normal, anomalous, self.form)

    def _normal(self, z: Tensor, statistics: Statistics, mean: Tensor | float, form: Form) -> Tensor:
        if statistics.alpha is not None:
            return normal_log_prob(z, statistics.alpha, statistics.beta, mean, form)
        variance = narrow(statistics.beta)[:, 0]
        q = (narrow(z) - mean).square().sum(1)
        return -0.5 * (z.shape[1] * (math.log(2 * math.pi) + torch.log(variance)) + q / variance)

    def _means(self, statistics: Statistics) -> tuple[Tensor | float, Tensor | float]:
        normal: Tensor | float = self.normal_mean
        anomalous: Tensor | float = self.anomaly_mean
        if statistics.normal_shift is not None:
            normal = normal + narrow(statistics.normal_shift)
        if statistics.anomaly_shift is not None:
            anomalous = anomalous + narrow(statistics.anomaly_shift)
        return normal, anomalous

    @staticmethod
    def _given(statistics: Statistics | None) -> Statistics:
        if statistics is None:
            raise ShapeError("statistics must be given to a semantic-aware base, from a variance head, but got None")
        return statistics

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"normal_mean={self.normal_mean}, anomaly_mean={self.anomaly_mean}, form={self.form}"
