"""A base with predicted statistics for flows that stay zuko's: the other way round from `ZukoFlow`."""

from typing import TYPE_CHECKING

from semflow.bases.distributions import Density
from semflow.nn import VarianceHead

from .foreign import library

if TYPE_CHECKING:
    from .zuko_lazy import SemanticLazyNormal

__all__ = ["zuko_base"]


def zuko_base(head: VarianceHead, channels: int, mean: float = 0.0, form: Density = "marginal") -> "SemanticLazyNormal":
    """The semantic-aware base as a `zuko.lazy.LazyDistribution`: `zuko.flows.Flow(transform, zuko_base(head, C))`.

    The flow stays zuko's own, with `log_prob`, `sample` and `rsample`; the context that conditions the transform is
    what the head predicts the variance from.

    Args:
        head: predicts from features, or from nothing: `InverseGammaVariance(FeatureStatisticsNetwork(D))` of contexts
            of D channels, `LearnedVariance(1)`, `FixedVariance(1.0)`, ...
        channels: C, the dimension of z.
        mean: of every channel; 0 for normal and 1 for anomalous locations, in the paper.
        form: `marginal`, a Student-t, or `mode`, a normal: the two forms of `SemanticNormal` that are densities.

    Raises:
        ConfigError: the head looks at images, `form` is none of the two, or zuko is not installed.

    Example:
        >>> import torch, zuko
        >>> from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance
        >>> head = InverseGammaVariance(FeatureStatisticsNetwork(8))
        >>> maf = zuko.flows.MAF(features=6, context=8, transforms=2, hidden_features=(16,))
        >>> flow = zuko.flows.Flow(maf.transform, zuko_base(head, channels=6))
        >>> c = torch.randn(2, 3, 4, 8)
        >>> flow(c).log_prob(torch.randn(2, 3, 4, 6)).shape, flow(c).sample((5,)).shape
        (torch.Size([2, 3, 4]), torch.Size([5, 2, 3, 4, 6]))
    """
    library("zuko.lazy", "zuko")
    from .zuko_lazy import SemanticLazyNormal

    return SemanticLazyNormal(head, channels, mean, form)
