"""The class behind `zuko_base`, in a file of its own: it inherits from zuko's, which is imported here and only here."""

from typing import get_args

import torch
from torch import Tensor
from zuko.lazy import LazyDistribution

from semflow.bases import SemanticNormal
from semflow.bases.distributions import Density
from semflow.errors import ConfigError, ShapeError
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Statistics, VarianceHead

from .statistics import looks_at_image

__all__ = ["SemanticLazyNormal"]


class SemanticLazyNormal(LazyDistribution):  # type: ignore[misc]  # zuko has no types
    """p(Z | c) = N(mean, s I) of C channels, s ~ IG(alpha(c), beta(c)) or certain; made by `zuko_base`.

    Contexts are zuko's, channels last: vectors (D,) or (N, D), each by itself, or maps (H, W, D) or (B, H, W, D), whose
    neighbours a head with a larger kernel sees. Without a context the head must need none. Statistics that a head has
    predicted otherwise, from the image say, are taken in place of a context:
    `zuko.distributions.NormalizingFlow(flow.transform(c), base(statistics))`.
    """

    def __init__(self, head: VarianceHead, channels: int, mean: float = 0.0, form: Density = "marginal") -> None:
        super().__init__()
        if form not in get_args(Density):
            raise ConfigError(f"form must be {' or '.join(get_args(Density))}, a density, but got {form!r}")
        if channels < 1:
            raise ConfigError(f"channels must be at least 1, but got {channels}")
        if looks_at_image(head):
            raise ConfigError(
                f"head must predict from a context, but a network of {type(head).__name__} looks at images: give it "
                "FeatureStatisticsNetwork, or call the head yourself and give its Statistics in place of the context"
            )
        self.head, self.channels, self.mean, self.form = head, channels, mean, form

    def forward(self, c: Tensor | Statistics | None = None) -> SemanticNormal:
        """The distribution, batch shape that of the context: (), (N,), (H, W) or (B, H, W); and event shape (C,)."""
        statistics = c if isinstance(c, Statistics) else self.statistics(c)
        batch = _batch(c)

        def of_locations(x: Tensor) -> Tensor:
            x = narrow(x)[:, 0]
            return x if batch is None else x.reshape(batch)

        alpha = None if statistics.alpha is None else of_locations(statistics.alpha)
        beta = of_locations(statistics.beta)
        shift = statistics.normal_shift
        mean = torch.full_like(beta, self.mean) if shift is None else self.mean + of_locations(shift)
        return SemanticNormal(alpha, beta, mean[..., None].expand(*mean.shape, self.channels), self.form, False)

    def statistics(self, c: Tensor | None = None) -> Statistics:
        """What the head says, as maps (B, 1, H, W) of the context; its `kl` belongs into a loss.

        Raises:
            ShapeError: the context has too many dimensions, or is missing where the head looks at it.
        """
        if c is None:
            if len(getattr(self.head, "networks", ())):
                raise ShapeError(f"c must be given: {type(self.head).__name__} predicts from it, but got None")
            own = next(self.head.parameters(), None)
            c = torch.zeros(self.channels) if own is None else own.new_zeros(self.channels)
        if not 1 <= c.dim() <= 4:
            raise ShapeError(f"c must be (D,), (N, D), (H, W, D) or (B, H, W, D), but got {tuple(c.shape)}")
        maps = c.reshape(-1, 1, 1, c.shape[-1]) if c.dim() < 3 else c.reshape(-1, *c.shape[-3:])
        given: list[Statistics] = self.head(maps, [maps.movedim(-1, 1)])
        return given[0]

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.channels}, mean={self.mean}, form={self.form}"


def _batch(c: Tensor | Statistics | None) -> torch.Size | None:
    """The shape of the batch; None where it is as the statistics have it."""
    if isinstance(c, Statistics):
        return None
    return torch.Size() if c is None else c.shape[:-1]
