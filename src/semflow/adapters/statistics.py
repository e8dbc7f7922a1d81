"""`with_statistics`: a base with predicted statistics under flows that people already have."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.bases import Base, SemanticGaussian, StandardNormal
from semflow.detectors import Latents, LikelihoodModel
from semflow.errors import ConfigError, ShapeError
from semflow.flows import PyramidFlow, ScaleWise
from semflow.functional import mask_to_grid
from semflow.nn import Context, PositionTables, Statistics, VarianceHead
from semflow.objectives import PRESETS, Objective, Terms, log_likelihood

from .dispatch import as_flow

__all__ = ["FlowWithStatistics", "with_statistics"]

Maps = Tensor | Sequence[Tensor]
Contexts = Context | Sequence[Context]


def with_statistics(
    flow: Any,
    head: VarianceHead | None,
    base: Base | None = None,
    objective: Objective | None = None,
) -> "FlowWithStatistics":
    """Statistics prediction (SANFlow's) for a flow that one has: a module with a loss, log p and an anomaly map.

    The flow is left as it is; its parameters train with those of the head.

    Args:
        flow: a flow, or what `as_flow` makes one of without more being said; a list of those, one a feature map, is a
            flow a scale. Or a whole `Fastflow` or `Cflow` of anomalib, or the torch model of one: images then take the
            place of features, see `ModelWithStatistics`.
        head: says the variance of the base at every location, see `semflow.nn.InverseGammaVariance`. None is the
            control: the flow as it was, on a standard normal.
        base: by default `SemanticGaussian()`; `StandardNormal()` without a head.
        objective: by default the paper's weights; without a head the negative log-likelihood.

    Raises:
        ConfigError: something is no flow, or base, head and objective do not go together.

    Example:
        >>> from torch.distributions.transforms import AffineTransform
        >>> from semflow.nn import InverseGammaVariance, StatisticsNetwork
        >>> scale = nn.Parameter(torch.ones(40))
        >>> model = with_statistics(AffineTransform(0.0, scale), InverseGammaVariance(StatisticsNetwork(stride=4)))
        >>> images, features, mask = torch.rand(2, 3, 64, 64), torch.randn(2, 40, 8, 8), torch.zeros(2, 64, 64)
        >>> model.loss(features, image=images, anomaly_mask=mask).total.backward()
        >>> scale.grad.shape, model.log_prob(features, image=images).shape
        (torch.Size([40]), torch.Size([2, 8, 8]))
        >>> model.anomaly_map(features, image=images).shape
        torch.Size([2, 64, 64])
    """
    from .anomalib_models import ModelWithStatistics, is_anomalib_model

    kind = ModelWithStatistics if is_anomalib_model(flow) else FlowWithStatistics
    return kind(flow, head, base, objective)


class FlowWithStatistics(LikelihoodModel):
    """What `with_statistics` gives; see there for the arguments.

    In all methods `features` is a map (B, C, H, W), or a list of them, one for each flow; `image` is (B, 3, H, W), RGB
    in [0, 1], needed where the head looks at it; `context` is that of the flows, one for all scales of a single flow or
    a list, one a scale.

    Example:
        >>> import torch
        >>> from semflow.flows import AffineCoupling
        >>> model = FlowWithStatistics(AffineCoupling(4), None)  # as it was: on the standard normal
        >>> features = torch.randn(2, 4, 3, 5)
        >>> model.loss(features).total.shape, model.log_prob(features).shape, model.anomaly_map(features).shape
        (torch.Size([]), torch.Size([2, 3, 5]), torch.Size([2, 3, 5]))
    """

    def __init__(
        self,
        flow: Any,
        head: VarianceHead | None,
        base: Base | None = None,
        objective: Objective | None = None,
    ) -> None:
        if isinstance(flow, PyramidFlow) and not isinstance(flow, ScaleWise):
            raise ConfigError(
                f"flow must be one flow a scale, but {type(flow).__name__} maps all scales at once: "
                "semflow.Detector takes it"
            )
        single = not isinstance(flow, list | tuple | nn.ModuleList)
        flows = [as_flow(one) for one in ([flow] if single else flow)]
        if not flows:
            raise ConfigError("flow must be a flow or a list of flows, one a scale, but got an empty list")
        base = base or (StandardNormal() if head is None else SemanticGaussian())
        if head is None and isinstance(base, SemanticGaussian):
            raise ConfigError("head must give a SemanticGaussian its variance, but got None; give FixedVariance()")
        objective = objective or (Objective(bce=0.0, kl=0.0) if head is None else PRESETS["paper"])
        super().__init__(flows, base, head, objective=objective)
        self.single = single

    def loss(
        self,
        features: Maps,
        *,
        image: Tensor | None = None,
        anomaly_mask: Tensor | None = None,
        context: Contexts = None,
    ) -> Terms:
        """The objective, summed over the scales: a step for each of their flows.

        Args:
            features: see the class; also image and context.
            image: as above.
            anomaly_mask: (B, H, W) in pixels of the image, or locations of a single map; 1 where anomalous. Without it
                all is normal.
            context: as above.

        Raises:
            ShapeError: an image is needed and not given, or shapes do not fit.
            ConfigError: a mask is given where the base knows no anomalies.
        """
        if anomaly_mask is not None and isinstance(self.base, StandardNormal):
            raise ConfigError("anomaly_mask must be None: a StandardNormal base has no anomalous distribution")
        latents = self.encode(features, image, context)
        masks = [
            None if anomaly_mask is None else mask_to_grid(anomaly_mask, (scale.z.shape[2], scale.z.shape[3]))
            for scale in latents
        ]
        return self.latent_loss(latents, masks)

    def log_prob(self, features: Maps, *, image: Tensor | None = None, context: Contexts = None) -> Any:
        """log p(features) as normal ones: (B, H, W) of a `"location"` flow, (B,) of a `"sample"` flow; with gradients.

        A list, one a scale, where flows were given as a list. With an inverse-gamma head and the form `"exact"` it is
        the expectation of log p over the variance, as in training; see `semflow.bases.SemanticGaussian`.
        """
        log_probs = [
            log_likelihood(self.base.log_prob(z, statistics), log_det, event)
            for z, log_det, event, statistics in self.encode(features, image, context)
        ]
        return log_probs[0] if self.single else log_probs

    @torch.no_grad()
    def anomaly_map(
        self,
        features: Maps,
        *,
        image: Tensor | None = None,
        size: tuple[int, int] | None = None,
        context: Contexts = None,
        log_det: bool = False,
    ) -> Tensor:
        """-1/K sum_k up(log p(z_k) / C_k), (B, H, W): higher is more anomalous; the same whatever is scored with it.

        It is of the latents (SANFlow, Eq. 6), since the log-det of a `"sample"` flow has no place. That of a
        `"location"` flow has: with `log_det=True` the map is of the features, which localizes better (docs/adapters.md
        has figures). It is not bounded, and its scales are not calibrated; `semflow.detectors.Scorer` does both.

        Args:
            features: see the class; also image and context.
            image: as above.
            size: (H, W) of the map; by default that of the image, or of the largest feature map. Bilinear.
            context: as above.
            log_det: add the log-det of each location to log p(z_k).

        Raises:
            ConfigError: log_det is asked of a flow that has one a sample.
        """
        with self.evaluating():
            return self.score(features, image=image, size=size, context=context, log_det=log_det)

    def score(
        self,
        features: Maps,
        *,
        image: Tensor | None = None,
        size: tuple[int, int] | None = None,
        context: Contexts = None,
        log_det: bool = False,
    ) -> Tensor:
        """`anomaly_map` in whatever mode the modules are in, and with gradients: what is exported."""
        latents = self.encode(features, image, context)
        if log_det and any(scale.event != "location" for scale in latents):
            raise ConfigError("log_det=True needs flows of event 'location', but got one of 'sample': it has no place")
        log_probs = self.latent_log_probs(latents, log_det)
        size = size or self._size(features, image, log_probs)
        ups = [F.interpolate(p[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] for p in log_probs]
        return -torch.stack(ups).mean(0)

    def _size(self, features: Maps, image: Tensor | None, maps: Sequence[Tensor]) -> tuple[int, int]:
        """That of the image, or of the largest map (B, H, W)."""
        return (image.shape[2], image.shape[3]) if image is not None else max((m.shape[1], m.shape[2]) for m in maps)

    def encode(self, features: Maps, image: Tensor | None = None, context: Contexts = None) -> list[Latents]:
        """Compute the latents and the statistics of each scale; arguments as in the class."""
        maps = [features] if isinstance(features, Tensor) else list(features)
        if len(maps) != len(self.flows.events):
            raise ShapeError(f"features must be {len(self.flows.events)} maps, one a flow, but got {len(maps)}")
        if image is not None and image.shape[0] != maps[0].shape[0]:
            raise ShapeError(f"image must be of {maps[0].shape[0]} images, as features are, but got {image.shape[0]}")
        alone = context is None or isinstance(context, Tensor | PositionTables)
        if alone and context is not None and len(maps) > 1:
            raise ShapeError(f"context must be a list of {len(maps)}, one a scale, but got {type(context).__name__}")
        contexts = [cast(Context, context)] * len(maps) if alone else list(cast(Sequence[Context], context))
        return self.encode_maps(maps, image, contexts)

    def statistics(self, images: Tensor | None, maps: Sequence[Tensor]) -> Sequence[Statistics | None]:
        """Predict the statistics of the base at each scale.

        Raises:
            ShapeError: the head predicts from images, and there are none.
        """
        if images is None and looks_at_image(self.head):
            raise ShapeError(
                f"image must be given, (B, 3, H, W) in [0, 1]: {type(self.head).__name__} predicts from it, "
                "but got None; FeatureStatisticsNetwork does without"
            )
        return super().statistics(images, maps)


def looks_at_image(head: nn.Module | None) -> bool:
    """Whether one of the head's networks is run on images, which is what they are run on unless they say otherwise."""
    networks = getattr(head, "networks", ())
    return any(getattr(network, "source", "image") != "features" for network in networks)
