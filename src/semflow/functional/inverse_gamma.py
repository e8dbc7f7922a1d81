"""Inverse-gamma distribution of a variance, IG(s; a, b) = b^a / Gamma(a) s^(-a-1) exp(-b / s).

Its parameters are maps with one channel, so float64 costs little: terms are computed in float64 where the device
supports it and returned in the dtype of the input, float32 or wider.
"""

from typing import Any, cast

import torch
from torch import Tensor

from semflow._validation import positive
from semflow.errors import ConfigError

from .series import stirling_tail


def wide(x: Tensor) -> Tensor:
    """Cast `x` to float64, or to float32 on devices without it (Apple's MPS)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def narrow(x: Tensor, *like: Tensor) -> Tensor:
    """Cast `x` to the widest dtype of `like` (by default its own), float32 or wider."""
    dtype = torch.float32
    for other in like or (x,):
        dtype = torch.promote_types(dtype, other.dtype)
    return x.to(dtype)


def filled(value: Tensor | float, like: Tensor) -> Tensor:
    """Return a number as a tensor of the type and the device of `like`; a copy from the host would wait for a GPU."""
    if isinstance(value, Tensor):
        return value.to(like)
    return torch.full((), value, dtype=like.dtype, device=like.device)


class _Special(torch.autograd.Function):
    """Function whose derivative is computed from its input."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _Digamma(_Special):
    """psi(x), differentiated by the Hurwitz zeta function zeta(2, x).

    torch differentiates digamma by `polygamma(1, x)`, whose relative error is 5e-10 near x = 1; that of zeta(2, x),
    the same function, is 1e-16.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.digamma(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        two = torch.full((), 2.0, dtype=x.dtype, device=x.device)
        return gradients[0] * cast(Tensor, torch.special.zeta(two, x))


def digamma(x: Tensor) -> Tensor:
    """Compute psi(x) = d log Gamma(x) / dx for x > 0, accurate in value and gradient.

    Example:
        >>> digamma(torch.tensor(1.0)).item()  # minus Euler's constant
        -0.5772...
    """
    result: Tensor = _Digamma.apply(wide(x))  # type: ignore[no-untyped-call]
    return narrow(result, x)


def inverse_gamma_prior(window: float = 11, mode: float = 0.1) -> tuple[float, float]:
    """Return the prior of the variance, alpha = p^2 / 2 - 1 and beta = p^2 xi / 2 (SANFlow, section 3.4.2).

    Args:
        window: Side p of the receptive field in pixels, above sqrt(2); 11 is that of five 3x3 convolutions.
        mode: Mode xi = beta / (alpha + 1) of the distribution, a variance.

    Example:
        >>> alpha, beta = inverse_gamma_prior()
        >>> round(alpha, 9), round(beta, 9)
        (59.5, 6.05)
    """
    if not window * window > 2:
        raise ConfigError(f"window must be above sqrt(2), so that alpha is positive, but got {window}")
    positive(mode=mode)
    return window * window / 2 - 1, window * window * mode / 2


def inverse_gamma_kl(alpha: Tensor, beta: Tensor, prior_alpha: Tensor | float, prior_beta: Tensor | float) -> Tensor:
    """Compute KL(IG(alpha, beta) || IG(prior_alpha, prior_beta)) in nats, elementwise (SANFlow, Eq. 4).

    (a - a0) psi(a) + log Gamma(a0) - log Gamma(a) + a0 (log b - log b0) + a (b0 / b - 1)

    Example:
        >>> a, b = torch.tensor(2.5, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
        >>> round(inverse_gamma_kl(a, b, 1.7, 0.4).item(), 12)
        0.454979007648
    """
    a, b = wide(alpha), wide(beta)
    a0, b0 = filled(prior_alpha, a), filled(prior_beta, a)
    kl = (a - a0) * digamma(a) + _lgamma(a0) - _lgamma(a) + a0 * (torch.log(b) - torch.log(b0)) + a * (b0 / b - 1)
    return narrow(kl, alpha, beta)


class _LogGamma(_Special):
    """log Gamma(x), differentiated by `digamma` above, so that second derivatives are accurate too."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.lgamma(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * digamma(*ctx.saved_tensors)


def _lgamma(x: Tensor) -> Tensor:
    result: Tensor = _LogGamma.apply(x)  # type: ignore[no-untyped-call]
    return result


def lgamma_step(x: Tensor, step: float) -> Tensor:
    """Compute log Gamma(x + step) - log Gamma(x) for x, step > 0.

    Above 16 the two terms are large and nearly equal, so Stirling's series is subtracted term by term: in float64, at
    x = 1e6 and step 1/2, the plain difference has an error of 1e-8, and its derivative one of 5e-8.
    """
    far = x.clamp(min=16.0)
    ratio = step * torch.log(far) + (far + (step - 0.5)) * torch.log1p(step / far) - step
    series = ratio + stirling_tail(far + step) - stirling_tail(far)
    return torch.where(x > 16, series, _lgamma(x + step) - _lgamma(x))


def inverse_gamma_mode(alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute the mode beta / (alpha + 1) of IG(alpha, beta), the variance used in maps and plug-in likelihoods.

    Example:
        >>> inverse_gamma_mode(torch.tensor(59.5), torch.tensor(6.05)).item()
        0.1...
    """
    return narrow(wide(beta) / (wide(alpha) + 1), alpha, beta)


def inverse_gamma_log_mean(alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute E[log s] = log beta - psi(alpha) for s ~ IG(alpha, beta).

    Example:
        >>> inverse_gamma_log_mean(torch.tensor(1.0), torch.tensor(1.0)).item()  # Euler's constant
        0.5772...
    """
    return narrow(torch.log(wide(beta)) - digamma(wide(alpha)), alpha, beta)


def inverse_gamma_precision(alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute E[1 / s] = alpha / beta for s ~ IG(alpha, beta).

    Example:
        >>> inverse_gamma_precision(torch.tensor(59.5), torch.tensor(6.05)).item()
        9.834...
    """
    return narrow(wide(alpha) / wide(beta), alpha, beta)
