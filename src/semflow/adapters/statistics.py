"""Statistics prediction for flows that a user already has."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import Size, at_least, checked, height_and_width
from semflow.bases import Base, SemanticGaussian, StandardNormal
from semflow.detectors import Latents, LikelihoodModel
from semflow.detectors.regions import see
from semflow.errors import ConfigError, ShapeError
from semflow.flows import PyramidFlow, ScaleWise
from semflow.functional import mask_to_grid
from semflow.nn import Context, PositionTables, VarianceHead
from semflow.objectives import PRESETS, Objective, Terms, log_likelihood

from .dispatch import as_flow
from .inputs import check_image, check_maps, check_mask

Maps = Tensor | Sequence[Tensor]
Contexts = Context | Sequence[Context]


def with_statistics(
    flow: Any, head: VarianceHead | None, base: Base | None = None, objective: Objective | None = None
) -> "FlowWithStatistics":
    """Add statistics prediction (SANFlow) to an existing flow.

    The flow is not changed; its parameters train together with those of the head.

    Args:
        flow: a flow, or anything that `as_flow` accepts without options, or a list of them, one per feature map. Or a
            whole `Fastflow` or `Cflow` of anomalib, or its torch model; it then takes images in place of features, see
            `ModelWithStatistics`.
        head: predicts the variance of the base at every location, see `semflow.nn.InverseGammaVariance`, from the
            features (to start with) or from the image (`StatisticsNetwork`). Give it the variance of your flow's
            latents as `mode`, 1 for most. With None the flow keeps a standard normal base, for comparison.
        base: by default `SemanticGaussian()`, or `StandardNormal()` without a head.
        objective: by default the paper's weights, or the negative log-likelihood without a head.

    Example:
        >>> from semflow.flows import AffineCoupling
        >>> from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance
        >>> head = InverseGammaVariance(FeatureStatisticsNetwork(40), mode=1.0)
        >>> model = with_statistics(AffineCoupling(40), head)
        >>> features, mask = torch.randn(2, 40, 8, 8), torch.zeros(2, 64, 64)
        >>> model.loss(features, anomaly_mask=mask).total.backward()
        >>> model.anomaly_map(features, size=64).shape
        torch.Size([2, 64, 64])
    """
    from .anomalib_models import ModelWithStatistics, is_anomalib_model

    kind = ModelWithStatistics if is_anomalib_model(flow) else FlowWithStatistics
    return kind(flow, head, base, objective)


class FlowWithStatistics(LikelihoodModel):
    """Flow with a base of predicted statistics; made by `with_statistics`, which documents the arguments.

    `with_memory` replaces the base by a memory, which `remember` fits.

    In all methods `features` is a map (B, C, H, W), or a list of them, one per flow; `image` is (B, 3, H, W), RGB in
    [0, 1], or (B, 1, H, W), gray, and needed if the head predicts from images; `context` is the context of the flow, or
    a list, one per flow.

    Example:
        >>> from semflow.flows import AffineCoupling
        >>> FlowWithStatistics(AffineCoupling(4), None).anomaly_map(torch.randn(2, 4, 3, 5)).shape
        torch.Size([2, 3, 5])
    """

    def __init__(
        self, flow: Any, head: VarianceHead | None, base: Base | None = None, objective: Objective | None = None
    ) -> None:
        if isinstance(flow, PyramidFlow) and not isinstance(flow, ScaleWise):
            raise ConfigError(
                f"flow must be one flow per scale, but got {type(flow).__name__}, which maps all scales at once; "
                "use semflow.Detector"
            )
        single = not isinstance(flow, list | tuple | nn.ModuleList)
        flows = [as_flow(one) for one in ([flow] if single else flow)]
        if not flows:
            raise ConfigError("flow must be a flow or a list of flows, one per scale, but got an empty list")
        base = base or (StandardNormal() if head is None else SemanticGaussian())
        if head is None and isinstance(base, SemanticGaussian):
            raise ConfigError("head must give a SemanticGaussian its variance, but got None; give FixedVariance()")
        objective = objective or (Objective(bce=0.0, kl=0.0) if head is None else PRESETS["paper"])
        super().__init__(flows, base, head, objective=objective)
        self.single, self.score_log_det = single, "sample" not in self.flows.events

    def encode(self, features: Maps, image: Tensor | None = None, context: Contexts = None) -> list[Latents]:
        """Compute the latents and the statistics of each scale."""
        maps = self.feature_maps(features)
        if image is not None:
            check_image(image, maps)
            image = see(image).images
        return self.encode_checked(maps, image, context)

    def encode_checked(self, maps: Sequence[Tensor], image: Tensor | None, context: Contexts) -> list[Latents]:
        """Compute the latents and the statistics of checked maps, one per scale."""
        if image is None and needs_image(self.head):
            raise ShapeError(
                f"image must be (B, 3, H, W) in [0, 1] for {type(self.head).__name__}, but got None; "
                "use FeatureStatisticsNetwork to predict from features"
            )
        return self.encode_maps(maps, image, self._contexts(context))

    def feature_maps(self, features: Maps) -> list[Tensor]:
        """Return the maps that the flows take, one per scale."""
        maps = [features] if isinstance(features, Tensor) else list(features)
        scales = len(self.flows.events)
        if len(maps) != scales:
            raise ShapeError(f"features must be {scales} maps, one per flow, but got {len(maps)}")
        check_maps(maps)
        return maps

    def remember(self, batches: Iterable[Maps], *, context: Contexts = None) -> None:
        """Fit the bases that are fitted, such as a memory, to features of normal images, in one pass and in eval mode.

        `batches` are features of the images, batch by batch; `context` is that of every batch.
        """
        if not self.fitted_bases:
            raise ConfigError(f"base must be a memory to remember features, but got {self.base}; use with_memory")
        if isinstance(batches, Tensor):
            raise ShapeError("batches must be a list of features, but got a tensor; call remember([features])")
        contexts = self._contexts(context)
        with self.evaluating():
            self.fit_latents(self.latents_to_fit(self.feature_maps(features), contexts) for features in batches)

    def _contexts(self, context: Contexts) -> Sequence[Context] | None:
        """Return one context per scale, or None."""
        if isinstance(context, Tensor | PositionTables):
            if (scales := len(self.flows.events)) > 1:
                raise ShapeError(f"context must be a list of {scales}, one per flow, but got {type(context).__name__}")
            return [context]
        return context

    def loss(
        self,
        features: Maps,
        *,
        image: Tensor | None = None,
        anomaly_mask: Tensor | None = None,
        context: Contexts = None,
    ) -> Terms:
        """Compute the objective, summed over the scales.

        `anomaly_mask` is (B, H, W) in pixels of the image, or in locations of a single map, 1 where anomalous. Without
        it all locations are normal.
        """
        if anomaly_mask is not None and isinstance(self.base, StandardNormal):
            raise ConfigError("anomaly_mask must be None for a StandardNormal base, but got a mask")
        latents = self.encode(features, image, context)
        if anomaly_mask is not None:
            check_mask(anomaly_mask, [scale.z for scale in latents], self.map_size(features, image))
        grids = [(scale.z.shape[2], scale.z.shape[3]) for scale in latents]
        masks = [None if anomaly_mask is None else mask_to_grid(anomaly_mask, grid) for grid in grids]
        return self.latent_loss(latents, masks)

    def log_prob(self, features: Maps, *, image: Tensor | None = None, context: Contexts = None) -> Any:
        """Compute log p(features) under the distribution of normal features, with gradients.

        With an inverse-gamma head and the form `"exact"` it is the expectation of log p over the variance, as in
        training. The shape is (B, H, W) for a `"location"` flow and (B,) for a `"sample"` flow; a list of flows gives a
        list, one per scale.
        """
        latents = self.encode(features, image, context)
        log_probs = [
            log_likelihood(base.log_prob(z, statistics), log_det, event)
            for base, (z, log_det, event, statistics) in zip(self.bases, latents, strict=True)
        ]
        return log_probs[0] if self.single else log_probs

    @checked
    @torch.no_grad()
    def anomaly_map(
        self,
        features: Maps,
        *,
        image: Tensor | None = None,
        size: Size | None = None,
        context: Contexts = None,
        log_det: bool | None = None,
    ) -> Tensor:
        """Compute -1/K sum_k up(log p_k / C_k), (B, H, W), in eval mode: higher is more anomalous.

        log p is that of the features, with the log-det, if all flows have the event `"location"`; `log_det=False`, and
        `"sample"` flows, whose log-det belongs to no location, give that of the latents (SANFlow, Eq. 6). For a base
        without a density, `normality` replaces log p / C.

        `size` is the height and width of the map, by default that of the image, or of the largest feature map; up() is
        bilinear. The map is not bounded, and its scales are not calibrated; `semflow.detectors.Scorer` does both.
        """
        if size is not None:
            size = height_and_width(size)
            at_least(1, size=min(size))
        log_det = self.score_log_det if log_det is None else log_det
        if log_det and "sample" in self.flows.events:
            raise ConfigError("log_det must be False for flows of event 'sample', but got True")
        with self.reading() as still:
            log_probs = still.latent_log_probs(still.encode(features, image, context), log_det)
        if size is None:
            size = self.map_size(features, image) or max((p.shape[1], p.shape[2]) for p in log_probs)
        ups = [F.interpolate(p[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] for p in log_probs]
        return -torch.stack(ups).mean(0)

    def map_size(self, features: Maps, image: Tensor | None) -> tuple[int, int] | None:
        """Return the default size of the anomaly map, or None for that of the largest feature map."""
        return None if image is None else (image.shape[2], image.shape[3])


def needs_image(head: nn.Module | None) -> bool:
    """Return whether one of a head's networks predicts from images, the default of networks without a `source`."""
    return any(getattr(network, "source", "image") != "features" for network in getattr(head, "networks", ()))
