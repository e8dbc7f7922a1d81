"""Digamma and log-gamma from elementary functions, for exchange formats without them."""

import math

import torch
from torch import Tensor

STEPS = 8
"""Steps of the recurrences before the series start; with 8 the first omitted term is below 2e-15."""

# B_2k / (2k) and B_2k / (2k (2k - 1)) of the Bernoulli numbers, from k = 7 and k = 6 down to 1.
_DIGAMMA = (1 / 12, -691 / 32760, 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12)
_LGAMMA = (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12)


def digamma_series(x: Tensor) -> Tensor:
    """Compute psi(x) for x > 0 from elementary functions.

    psi(x) = log y - 1 / (2 y) - sum_k B_2k / (2k y^2k) - sum_(i < 8) 1 / (x + i) with y = x + 8 (Abramowitz and Stegun,
    6.3.5 and 6.3.18).

    Example:
        >>> x = torch.tensor([1e-8, 0.5, 60.0], dtype=torch.float64)
        >>> torch.allclose(digamma_series(x), torch.digamma(x), rtol=1e-13)
        True
    """
    poles = 1 / x
    for i in range(1, STEPS):
        poles = poles + 1 / (x + i)
    y = x + STEPS
    return torch.log(y) - 0.5 / y - _horner(_DIGAMMA, y) / y - poles


def lgamma_series(x: Tensor) -> Tensor:
    """Compute log Gamma(x) for x > 0 from elementary functions.

    log Gamma(x) = (y - 1/2) log y - y + log(2 pi) / 2 + sum_k B_2k / (2k (2k - 1) y^(2k - 1))
    - log prod_(i < 8) (x + i) with y = x + 8 (Abramowitz and Stegun, 6.1.15 and 6.1.41).

    It is accurate to the rounding of the largest term; in float32 x must be below 1e4, because x (x + 1) ... (x + 7) is
    formed.

    Example:
        >>> x = torch.tensor([1e-8, 0.5, 60.0], dtype=torch.float64)
        >>> torch.allclose(lgamma_series(x), torch.lgamma(x), rtol=1e-13)
        True
    """
    product = x
    for i in range(1, STEPS):
        product = product * (x + i)
    y = x + STEPS
    return (y - 0.5) * torch.log(y) - y + 0.5 * math.log(2 * math.pi) + stirling_tail(y) - torch.log(product)


def stirling_tail(x: Tensor) -> Tensor:
    """Compute log Gamma(x) - (x - 1/2) log x + x - 1/2 log 2pi, to 2e-18 for x >= 16."""
    return _horner(_LGAMMA, x)


def _horner(coefficients: tuple[float, ...], y: Tensor) -> Tensor:
    """Compute sum_k c_k / y^(2k - 1); the last coefficient is c_1."""
    inverse = 1 / y
    square = inverse * inverse
    total = torch.full_like(y, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * square + coefficient
    return total * inverse
