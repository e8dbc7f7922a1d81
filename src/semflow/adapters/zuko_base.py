"""Base with predicted statistics for flows that stay zuko's own."""

import torch
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.bases import SemanticNormal
from semflow.bases.distributions import Density
from semflow.errors import ConfigError, ShapeError
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Statistics, VarianceHead

from .statistics import needs_image


class ZukoBase(nn.Module):
    """Base of a zuko flow with predicted statistics: p(z | c) = N(mean, s I), s ~ IG(alpha(c), beta(c)) or certain.

    It stands wherever zuko takes a `LazyDistribution`, as in `zuko.flows.Flow(transform, ZukoBase(head, C))`. The flow
    keeps zuko's `log_prob`, `sample` and `rsample`; the head predicts from the context that conditions the transform.

    Contexts have zuko's layout, channels last: vectors (D,) or (N, D), each on its own, or maps (H, W, D) or
    (B, H, W, D), whose neighbors a head with a larger kernel uses. `Statistics` that were predicted from something else
    can take the place of a context: `zuko.distributions.NormalizingFlow(flow.transform(c), base(statistics))`.

    Args:
        head: predicts from features or needs no input: `InverseGammaVariance(FeatureStatisticsNetwork(D))` for contexts
            of D channels, `LearnedVariance(1)`, `FixedVariance(1.0)`, ...
        channels: C, the dimension of z.
        mean: mean of every channel; in the paper 0 for normal and 1 for anomalous locations.
        form: `"marginal"`, a Student-t, or `"mode"`, a normal: the two forms of `SemanticNormal` that are densities.

    Example:
        >>> import zuko
        >>> from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance
        >>> base = ZukoBase(InverseGammaVariance(FeatureStatisticsNetwork(8)), channels=6)
        >>> maf = zuko.flows.MAF(features=6, context=8, transforms=2, hidden_features=(16,))
        >>> zuko.flows.Flow(maf.transform, base)(torch.randn(2, 3, 4, 8)).sample((5,)).shape
        torch.Size([5, 2, 3, 4, 6])
    """

    @checked
    def __init__(self, head: VarianceHead, channels: int, mean: float = 0.0, form: Density = "marginal") -> None:
        super().__init__()
        at_least(1, channels=channels)
        if needs_image(head):
            raise ConfigError(
                f"head must predict from a context, but got {type(head).__name__} with a network on images; use "
                "FeatureStatisticsNetwork, or pass the head's Statistics in place of the context"
            )
        self.head, self.channels, self.mean, self.form = head, channels, mean, form

    def forward(self, c: Tensor | Statistics | None = None) -> SemanticNormal:
        """Return the distribution of z: batch shape (), (N,), (H, W) or (B, H, W) as the context, event shape (C,)."""
        statistics = c if isinstance(c, Statistics) else self.statistics(c)
        batch = torch.Size() if c is None else c.shape[:-1] if isinstance(c, Tensor) else None

        def per_location(x: Tensor) -> Tensor:
            x = narrow(x)[:, 0]
            return x if batch is None else x.reshape(batch)

        alpha = None if statistics.alpha is None else per_location(statistics.alpha)
        beta = per_location(statistics.beta)
        shift = statistics.normal_shift
        mean = torch.full_like(beta, self.mean) if shift is None else self.mean + per_location(shift)
        return SemanticNormal(alpha, beta, mean[..., None].expand(*mean.shape, self.channels), self.form, False)

    def statistics(self, c: Tensor | None = None) -> Statistics:
        """Predict the statistics as maps (B, 1, H, W) of the context; their `kl` can be added to a loss."""
        if c is None:
            if len(getattr(self.head, "networks", ())):
                raise ShapeError(f"c must be a context for {type(self.head).__name__}, but got None")
            own = next(self.head.parameters(), None)
            c = torch.zeros(self.channels) if own is None else own.new_zeros(self.channels)
        if not 1 <= c.dim() <= 4:
            raise ShapeError(f"c must be (D,), (N, D), (H, W, D) or (B, H, W, D), but got {tuple(c.shape)}")
        maps = c.reshape(-1, 1, 1, c.shape[-1]) if c.dim() < 3 else c.reshape(-1, *c.shape[-3:])
        predicted: list[Statistics] = self.head(maps, [maps.movedim(-1, 1)])
        return predicted[0]

    def extra_repr(self) -> str:
        """Return the channels, the mean and the form for `repr`."""
        return f"{self.channels}, mean={self.mean}, form={self.form}"
