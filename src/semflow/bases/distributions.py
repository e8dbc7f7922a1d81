"""The base of a flow as `torch.distributions` objects, for Pyro, zuko and other code that takes distributions."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution, InverseGamma, constraints

from semflow.errors import ConfigError, ShapeError
from semflow.functional import digamma, normal_log_prob
from semflow.functional.inverse_gamma import lgamma_step, narrow, wide
from semflow.nn import Statistics

Density = Literal["marginal", "mode"]
"""Form of a density, see `SemanticNormal`."""


def variance_distribution(statistics: Statistics) -> InverseGamma:
    """Return the inverse-gamma distribution of the variance, with batch shape (B, H, W), from statistics with alpha.

    `torch.distributions.kl_divergence` of two of them equals `semflow.functional.inverse_gamma_kl` in the precision of
    the parameters. Prefer the function near the prior, where terms of 240 nats cancel: it computes in float64.

    Example:
        >>> statistics = Statistics(alpha=torch.full((2, 1, 4, 4), 59.5), beta=torch.full((2, 1, 4, 4), 6.05))
        >>> variance_distribution(statistics).batch_shape
        torch.Size([2, 4, 4])
    """
    if statistics.alpha is None:
        raise ConfigError("statistics must have alpha, but got None; use a head that predicts an inverse gamma")
    alpha, beta = (narrow(x, statistics.alpha, statistics.beta)[:, 0] for x in (statistics.alpha, statistics.beta))
    return InverseGamma(alpha, beta, validate_args=False)


class SemanticNormal(Distribution):
    """Normal N(loc, s I) of C channels whose variance s is IG(alpha, beta) distributed or known (SANFlow, Eq. 5 to 7).

    - `marginal` integrates s out, giving a Student-t with 2 alpha degrees of freedom and squared scale beta / alpha.
    - `mode` sets s to its mode beta / (alpha + 1), giving a normal.

    If `alpha` is None, the variance is beta, and both forms are the same normal. The other forms of `normal_log_prob`
    do not integrate to 1; the `exact` form is a lower bound of `marginal`, see `expected_log_prob`.

    `rsample` is reparameterized, with torch's implicit gradients of the Gamma distribution. Densities are computed in
    float64. Divergences from normals (torch's, or this class in form `mode`) are registered with
    `torch.distributions.kl_divergence`; the divergence from a Student-t has no closed form.

    For Pyro, derive a class: `class Base(SemanticNormal, TorchDistributionMixin): ...`.

    Args:
        alpha: Positive number or tensor that broadcasts to the batch shape, or None.
        beta: Positive number or tensor that broadcasts to the batch shape.
        loc: Location (..., C), whose last axis is the event.
        form: `marginal` or `mode`.
        validate_args: Check parameters, and values in `log_prob`, like torch's distributions. Torch's global default,
            which other libraries change, is not used.

    Example:
        >>> base = SemanticNormal(torch.tensor([2.0, 3.0]), 1.0, torch.zeros(8))
        >>> base.rsample((5,)).shape, base.log_prob(torch.zeros(8)).shape
        (torch.Size([5, 2, 8]), torch.Size([2]))
    """

    arg_constraints = {  # noqa: RUF012  # torch's own convention
        "alpha": constraints.positive,
        "beta": constraints.positive,
        "loc": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    alpha: Tensor | None
    beta: Tensor
    loc: Tensor

    def __init__(
        self,
        alpha: Tensor | float | None,
        beta: Tensor | float,
        loc: Tensor,
        form: Density = "marginal",
        validate_args: bool = True,
    ) -> None:
        if form not in get_args(Density):
            raise ConfigError(f"form must be marginal or mode, but got {form!r}; call expected_log_prob for exact")
        if not isinstance(loc, Tensor) or loc.dim() == 0:
            raise ShapeError(f"loc must be a tensor (..., C), but got {loc}; expand it to its channels")
        loc = narrow(loc, loc, *(x for x in (alpha, beta) if isinstance(x, Tensor)))
        like: dict[str, Any] = {"dtype": loc.dtype, "device": loc.device}
        scale = torch.as_tensor(beta, **like)
        shape = None if alpha is None else torch.as_tensor(alpha, **like)
        batch = _broadcast("alpha, beta and loc", loc.shape[:-1], scale.shape, () if shape is None else shape.shape)
        self.alpha = None if shape is None else shape.expand(batch)
        self.beta, self.loc, self.form = scale.expand(batch), loc.expand(*batch, -1), form
        if self.alpha is None:
            self.arg_constraints = {k: v for k, v in self.arg_constraints.items() if k != "alpha"}
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    @classmethod
    def from_statistics(
        cls,
        statistics: Statistics,
        channels: int,
        mean: Tensor | float = 0.0,
        form: Density = "marginal",
        validate_args: bool = False,
    ) -> "SemanticNormal":
        """Make the distributions of all locations of one scale, with batch shape (B, H, W) and event shape (C,).

        Latents have their channels first, so call `log_prob(z.movedim(1, -1))`. Shifts are not applied; add them to
        `mean`, a number or a tensor that broadcasts to (B, C, H, W).

        Example:
            >>> statistics = Statistics(beta=torch.full((2, 1, 4, 4), 0.1))
            >>> base, z = SemanticNormal.from_statistics(statistics, channels=8), torch.zeros(2, 8, 4, 4)
            >>> base.log_prob(z.movedim(1, -1)).shape
            torch.Size([2, 4, 4])
        """
        beta = narrow(statistics.beta)
        loc = torch.as_tensor(mean, dtype=None if isinstance(mean, Tensor) else beta.dtype, device=beta.device)
        shape = (beta.shape[0], channels, *beta.shape[2:])
        if _broadcast("mean and statistics", loc.shape, shape) != shape:
            raise ShapeError(f"mean must broadcast to (B, C, H, W) = {shape}, but got {tuple(loc.shape)}")
        alpha = None if statistics.alpha is None else statistics.alpha[:, 0]
        return cls(alpha, beta[:, 0], loc.expand(shape).movedim(1, -1), form, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SemanticNormal":
        """Expand to a larger batch shape without copying."""
        new: SemanticNormal = self._get_checked_instance(SemanticNormal, _instance)  # type: ignore[no-untyped-call]
        batch = torch.Size(batch_shape)
        new.alpha = None if self.alpha is None else self.alpha.expand(batch)
        new.beta, new.loc, new.form = self.beta.expand(batch), self.loc.expand(*batch, -1), self.form
        new.arg_constraints = self.arg_constraints
        Distribution.__init__(new, batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Mean `loc`; NaN for a Student-t with alpha <= 1/2, whose mean is undefined."""
        if not self._is_student:
            return self.loc
        return torch.where(self._a[..., None] > 0.5, self.loc, math.nan)

    @property
    def mode(self) -> Tensor:
        """Mode `loc`."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of each channel; for a Student-t infinite if alpha <= 1 and NaN if alpha <= 1/2."""
        variance = self._spread()
        if self._is_student:
            variance = torch.where(self._a > 0.5, variance, math.nan)
        return narrow(variance, self.loc)[..., None].expand(self.loc.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute log p(value) for values (..., C), in the broadcast batch shape."""
        return self._log_prob(value, self.form)

    def expected_log_prob(self, value: Tensor) -> Tensor:
        """Compute E[log N(value; loc, s I)] over s, the `exact` form and a lower bound of the marginal log density."""
        return self._log_prob(value, "exact")

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw loc + sqrt(s) e with e ~ N(0, I), differentiable in all parameters."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        if self._is_student:
            drawn = InverseGamma(self._a, self.beta, validate_args=False).rsample(torch.Size(sample_shape))
        else:
            drawn = narrow(self._spread(), self.loc)
        return self.loc + drawn.sqrt()[..., None] * noise

    def entropy(self) -> Tensor:
        """Compute -E[log p(z)] in nats, in the batch shape.

        It is C/2 log 2 pi b - log(Gamma(a + C/2) / Gamma(a)) + (a + C/2) (psi(a + C/2) - psi(a)) for a Student-t and
        C/2 (1 + log 2 pi s) for a normal.
        """
        return narrow(self._entropy(), self.loc)

    @property
    def _is_student(self) -> bool:
        return self.alpha is not None and self.form == "marginal"

    @property
    def _a(self) -> Tensor:
        """Alpha, or 0 for a known variance, so that the mode beta / (alpha + 1) is beta."""
        return torch.zeros_like(self.beta) if self.alpha is None else self.alpha

    def _spread(self) -> Tensor:
        """Compute E[(z_c - loc_c)^2] in float64; infinite for a Student-t with alpha <= 1."""
        a, b = wide(self._a), wide(self.beta)
        if not self._is_student:
            return b / (a + 1)
        finite = a > 1
        return torch.where(finite, b / torch.where(finite, a - 1, 1.0), math.inf)

    def _entropy(self) -> Tensor:
        half = self.event_shape[0] / 2
        if not self._is_student:
            return half * (1 + torch.log(2 * math.pi * self._spread()))
        a, b = wide(self._a), wide(self.beta)
        psi = digamma(a + half) - digamma(a)
        return half * torch.log(2 * math.pi * b) - lgamma_step(a, half) + (a + half) * psi

    def _log_prob(self, value: Tensor, form: Literal["exact", "marginal", "mode"]) -> Tensor:
        if value.shape[-1:] != self.event_shape:
            raise ShapeError(f"value must be (..., {self.event_shape[0]}), but got {tuple(value.shape)}")
        batch = _broadcast("value and the distribution", value.shape[:-1], self.batch_shape)
        if self._validate_args:
            self._validate_sample(value)
        alpha, beta = (x.expand(batch)[..., None] for x in (self._a, self.beta))
        form = form if self.alpha is not None else "mode"
        return normal_log_prob(value.expand(*batch, -1), alpha, beta, self.loc, form, dim=-1)


def _broadcast(names: str, *shapes: Any) -> torch.Size:
    try:
        return torch.Size(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        raise ShapeError(f"{names} must broadcast, but got {', '.join(str(tuple(s)) for s in shapes)}") from None
