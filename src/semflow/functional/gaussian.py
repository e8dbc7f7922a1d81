"""Log-probability of a Gaussian with inverse-gamma variance, and log-odds between two means."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from semflow.errors import ConfigError, ShapeError

from .inverse_gamma import digamma, lgamma_step, narrow, wide

Form = Literal["exact", "paper", "reference", "marginal", "mode"]
"""Form in which an inverse-gamma variance enters the log-probability, see `normal_log_prob`."""

FORMS: tuple[Form, ...] = get_args(Form)
"""All forms."""

_LOG_2PI = math.log(2 * math.pi)


def normal_log_prob(
    z: Tensor, alpha: Tensor, beta: Tensor, mean: Tensor | float = 0.0, form: Form = "exact", dim: int = 1
) -> Tensor:
    """Compute log p(z) at every location for an inverse-gamma distributed variance (SANFlow, Eq. 6 and 7).

    The result is (B, H, W) in nats, float32 or float64. With q = ||z - mean||^2 over C channels and
    s ~ IG(alpha, beta), the forms are

    - `exact`: E[log N(z; mean, s I)] = -C/2 log 2pi - C/2 (log beta - psi(alpha)) - alpha / (2 beta) q
    - `marginal`: log E[N(z; mean, s I)], a multivariate Student-t with 2 alpha degrees of freedom
    - `mode`: log N(z; mean, beta / (alpha + 1) I), used at test time by the published code
    - `paper`: -1/2 log 2pi - 1/2 (log beta - psi(alpha)) - alpha / (2 beta) q, as printed, correct for C = 1
    - `reference`: -C/2 log 2pi - C (log beta - psi(alpha)) - alpha / (2 beta) q, the loss of the published code

    Args:
        z: Latents of shape (B, C, H, W), or any shape with the channels along `dim`.
        alpha: Positive shape parameters of size 1 along `dim`, e.g. (B, 1, H, W), broadcastable to `z`.
        beta: Positive scale parameters, like `alpha`.
        mean: Number or tensor broadcastable to `z`; 0 for normal and 1 for anomalous locations in SANFlow.
        form: One of the five forms.
        dim: Axis of the channels, which is summed over.

    Example:
        >>> z = torch.zeros(2, 8, 4, 4)
        >>> log_p = normal_log_prob(z, torch.full((2, 1, 4, 4), 59.5), torch.full((2, 1, 4, 4), 6.05))
        >>> log_p.shape, round(log_p[0, 0, 0].item(), 4)
        (torch.Size([2, 4, 4]), 1.7...)
    """
    _check(z, alpha, beta, dim, form)
    channels = z.shape[dim]
    deviation = narrow(z) if isinstance(mean, float | int) and mean == 0 else narrow(z) - mean
    q = wide(deviation.square().sum(dim))
    a, b = wide(alpha).squeeze(dim), wide(beta).squeeze(dim)
    if form == "marginal":
        half = channels / 2
        log_p = lgamma_step(a, half) - half * (_LOG_2PI + torch.log(b)) - (a + half) * torch.log1p(q / (2 * b))
    elif form == "mode":
        log_p = -channels / 2 * (_LOG_2PI + torch.log(b) - torch.log1p(a)) - (a + 1) / (2 * b) * q
    else:
        log_variance = torch.log(b) - digamma(a)
        weight_2pi, weight_variance = {
            "exact": (channels / 2, channels / 2),
            "paper": (0.5, 0.5),
            "reference": (channels / 2, channels),
        }[form]
        log_p = -weight_2pi * _LOG_2PI - weight_variance * log_variance - a / (2 * b) * q
    return narrow(log_p, z, alpha, beta)


def normal_log_odds(
    z: Tensor,
    alpha: Tensor,
    beta: Tensor,
    normal_mean: Tensor | float = 0.0,
    anomaly_mean: Tensor | float = 1.0,
    form: Form = "exact",
    dim: int = 1,
) -> Tensor:
    """Compute log p(z | normal) - log p(z | anomalous) at every location, the logit of s(z) in SANFlow's Eq. 8.

    Both hypotheses share the variance, so its normalization and the log-det cancel. The rest is linear in z,
    alpha / beta sum_c (m_n - m_a)(z_c - (m_n + m_a) / 2), and is computed without subtracting large numbers.

    Arguments are those of `normal_log_prob`, and both means are numbers or tensors broadcastable to `z`. The result, of
    shape (B, H, W) in nats, is positive where `z` is nearer to the normal mean.

    Example:
        >>> one = torch.ones(1, 1, 1, 1)
        >>> normal_log_odds(torch.zeros(1, 4, 1, 1), one, one).item()  # (0 - 1)(0 - 1/2) over four channels
        2.0
    """
    _check(z, alpha, beta, dim, form)
    z = narrow(z)
    normal_mean, anomaly_mean = (narrow(m) if isinstance(m, Tensor) else m for m in (normal_mean, anomaly_mean))
    gap = wide(_quadratic_gap(z, normal_mean, anomaly_mean, dim))
    a, b = wide(alpha).squeeze(dim), wide(beta).squeeze(dim)
    if form == "marginal":
        # log (2b + q_a) / (2b + q_n), written as log1p of a positive ratio on either side: near the anomalous mean the
        # other ratio is 1 - (almost 1), which rounding can make negative.
        q_normal, q_anomaly = (wide((z - m).square().sum(dim)) for m in (normal_mean, anomaly_mean))
        nearer_normal = torch.log1p(gap.clamp(min=0) / (2 * b + q_normal))
        nearer_anomaly = torch.log1p((-gap).clamp(min=0) / (2 * b + q_anomaly))
        odds = (a + z.shape[dim] / 2) * torch.where(gap >= 0, nearer_normal, -nearer_anomaly)
    elif form == "mode":
        odds = (a + 1) / (2 * b) * gap
    else:
        odds = a / (2 * b) * gap
    return narrow(odds, z, alpha, beta)


def _quadratic_gap(z: Tensor, normal_mean: Tensor | float, anomaly_mean: Tensor | float, dim: int) -> Tensor:
    """Compute ||z - m_a||^2 - ||z - m_n||^2 = sum_c (m_n - m_a)(2 z_c - m_n - m_a)."""
    difference, total = normal_mean - anomaly_mean, normal_mean + anomaly_mean
    if isinstance(difference, Tensor):
        return (difference * (2 * z - total)).sum(dim)
    return difference * (2 * z.sum(dim) - z.shape[dim] * total)


def _check(z: Tensor, alpha: Tensor, beta: Tensor, dim: int, form: str) -> None:
    if form not in FORMS:
        raise ConfigError(f"form must be one of {', '.join(FORMS)}, but got {form!r}")
    for name, x in (("alpha", alpha), ("beta", beta)):
        if x.dim() != z.dim() or x.shape[dim] != 1:
            raise ShapeError(
                f"{name} must have the axes of z {tuple(z.shape)} with size 1 along dim {dim}, but got {tuple(x.shape)}"
            )
