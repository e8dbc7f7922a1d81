"""The detector: features, a likelihood model of them, a score and its calibration."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, SupportsIndex, cast

import torch
from torch import Tensor, nn

from semflow._defaults import own_device
from semflow._devices import is_readable, to_device
from semflow._memory import per_batch
from semflow._validation import checked, kind_of
from semflow.bases import Base, FittedBase
from semflow.errors import ConfigError
from semflow.features import FeatureExtractor
from semflow.features.timm_module import reduce_with_timm
from semflow.flows import PyramidFlow
from semflow.nn import PositionCode, Statistics, VarianceHead
from semflow.objectives import Objective, Terms

from .calibration import Calibration
from .inputs import LOW, check_images, check_masks, check_size, check_values, location_masks
from .interface import Prediction, Provenance
from .likelihood import Latents
from .passes import FittingPasses
from .regions import LARGEST_REGION, at_scales, check_inside, check_region, saved_region
from .scoring import Scorer
from .tiled import predict_tiles


class Detector(FittingPasses):
    """Detector of anomalies in images: frozen features, flows, a base with its variance head, and a score.

    Args:
        features: frozen backbone that maps images (B, 3, H, W) in [0, 1] to K feature maps.
        flows: one per scale, or a `PyramidFlow` of all scales. `prepare` fits a leading `Standardize`.
        base: distribution of the latents, of all scales or a list with one per scale. `fit_base` fits those that are a
            `FittedBase`.
        head: variance head, or None for bases that need no statistics.
        position: position code that all flows receive as their context, or None.
        objective: training loss.
        scorer: computes scores from log-probabilities.
        score_log_det: score log p of the features, with the log-det, instead of log p of the latents (Eq. 6).
        localizes: False for a detector of whole images, whose map has one value.

    Attributes:
        calibration: scores of held-out normal images, see `Calibration`.
        provenance: how the detector was made, see `Provenance`.
        region: (H, W) bool, the region of interest of all images, see `set_region`; None is everywhere.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, sanflow
        >>> detector = sanflow(Backbone("resnet18", "random"), couplings=Couplings(2, 16))
        >>> prediction = detector.predict(torch.rand(2, 3, 64, 64))
        >>> prediction.score.shape, prediction.anomaly_map.shape, len(prediction.variance)
        (torch.Size([2]), torch.Size([2, 64, 64]), 3)
    """

    @checked
    def __init__(
        self,
        features: FeatureExtractor,
        flows: Sequence[nn.Module] | PyramidFlow,
        base: Base | Sequence[Base],
        head: VarianceHead | None = None,
        position: PositionCode | None = None,
        objective: Objective | None = None,
        scorer: Scorer | None = None,
        score_log_det: bool = False,
        localizes: bool = True,
    ) -> None:
        if isinstance(features, type) or not hasattr(features, "channels"):
            raise ConfigError(
                f"features must have channels and strides, but got {kind_of(features)}; wrap a network, "
                "FrozenFeatures(network, channels, strides)"
            )
        super().__init__(flows, base, head, position, objective)
        self.features = cast(nn.Module, features)
        if (scales := len(self.flows.events)) != len(features.channels):
            raise ConfigError(f"flows must be {len(features.channels)}, one per feature map, but got {scales}")
        if isinstance(features, nn.Module):
            features.eval()
        self.scorer = scorer or Scorer(scales)
        self.calibration = Calibration()
        self.score_log_det, self.localizes = score_log_det, localizes
        self.provenance = Provenance()
        self.register_buffer("region", None)

    @property
    def flexible(self) -> dict[str, int]:
        """Prefixes of names that a saved state may lack or hold in other lengths, with the largest number of values.

        Their modules check what they load.
        """
        found = {"region": LARGEST_REGION}
        for name, module in self.named_modules():
            if isinstance(module, Calibration):
                found[f"{name}."] = module.largest
            elif isinstance(module, FittedBase):  # its prior is as fixed as any other module
                found |= {f"{name}.{buffer}": module.largest for buffer, _ in module.named_buffers(recurse=False)}
        return found

    @property
    def map_range(self) -> tuple[float, float]:
        """Color range for anomaly maps: pixels at the first value or below have no color, see `color_range`.

        It comes from the calibration images if there are any, and otherwise from the training images.
        """
        low, high = self.scorer.map_bounds.tolist()
        return low, high

    @property
    def device(self) -> torch.device:
        """Device of the detector, and of the images that it takes."""
        return self.scorer.offsets.device

    @property
    def fitted(self) -> bool:
        """True if scores depend on images of a data set, as after training or calibration."""
        made = self.provenance
        return bool(made.fingerprints or made.frames or self.calibration.count)

    @property
    def false_alarm_rate(self) -> float | None:
        """False-alarm rate of decisions, or None without calibration."""
        return self.calibration.false_alarm_rate

    def set_region(self, region: Tensor | None) -> None:
        """Set the region of interest of all images, a mask (H, W) of their size; None is everywhere.

        Outside it nothing trains, scores or counts: pixels there are replaced by gray, their locations are left out,
        and the anomaly map is -inf. Only the loss of flows whose event is the sample includes the gray. Set it before
        training; `semflow.fit` does, with `region`.

        Example:
            >>> from semflow.recipes import Backbone, cflow_ad
            >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
            >>> detector.set_region(torch.ones(32, 32).tril() > 0)
            >>> detector.predict(torch.rand(1, 3, 32, 32)).anomaly_map[0, 0, :2].isfinite()
            tensor([ True, False])
        """
        if region is not None:
            region = check_region(region, self.provenance).to(self.device)
            region = None if bool(region.all()) else region
        self.region = region

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: object) -> None:
        self.region = saved_region(state_dict.get(f"{prefix}region"), self.provenance, self.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def calibration_images(self) -> int:
        """Number of calibration images, 0 without calibration."""
        return self.calibration.count

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Return the state for pickle and copy; see `reduce_with_timm`."""
        return reduce_with_timm(self, super().__reduce_ex__(protocol))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert all tensors, as `to`, `half` and others do; raise ConfigError for a type of too low precision."""
        if (found := fn(self.scorer.offsets[:0]).dtype) in LOW:
            raise ConfigError(
                f"dtype must be torch.float32 or torch.float64 for a detector, but got {found}, whose precision is too "
                "low for log-probabilities; use torch.autocast around predict if that is faster"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all submodules but the features, which stay in eval mode."""
        super().train(mode)
        if isinstance(self.features, nn.Module):
            self.features.eval()
        return self

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that training changes: all but those of the backbone."""
        frozen = {id(p) for p in self.features.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in frozen]

    def encode(
        self,
        images: Tensor,
        maps: Sequence[Tensor] | None = None,
        statistics: Sequence[Statistics | None] | None = None,
    ) -> list[Latents]:
        """Map images (B, C, H, W) in [0, 1], with maps and statistics if known, to the latents of each scale."""
        maps = self.feature_maps(images) if maps is None else maps
        return self.encode_maps(maps, self.see(images).images, statistics=statistics)

    def loss(
        self,
        images: Tensor,
        anomaly_masks: Tensor | None = None,
        maps: Sequence[Tensor] | None = None,
        mask_resize: Literal["nearest", "max"] = "max",
        guard: int = 1,
        statistics: Sequence[Statistics | None] | None = None,
    ) -> Terms:
        """Compute the objective over all scales, see `LikelihoodModel.latent_loss`.

        Args:
            images: (B, C, H, W) in [0, 1], see `Sample`.
            anomaly_masks: (B, H, W), 1 where anomalous; None if all is normal.
            maps: feature maps of the images, if known.
            mask_resize: see `location_masks`.
            guard: see `location_masks`.
            statistics: of the base at each scale; by default, those that the head predicts.
        """
        check_images(images, self.reference, values=False)
        check_masks(anomaly_masks, images)
        latents = self.encode(images, maps, statistics)
        sizes = [(scale.z.shape[2], scale.z.shape[3]) for scale in latents]
        masks = self.masks_at(sizes, images, anomaly_masks, mask_resize, guard)
        return self.latent_loss(latents, [mask for mask, _ in masks], [ignored for _, ignored in masks])

    def masks_at(
        self,
        sizes: Sequence[tuple[int, int]],
        images: Tensor,
        anomaly_masks: Tensor | None = None,
        mask_resize: Literal["nearest", "max"] = "max",
        guard: int = 1,
    ) -> list[tuple[Tensor | None, Tensor | None]]:
        """Compute the masks of the loss, see `location_masks`, at each size; other arguments are those of `loss`."""
        inside = at_scales(self.see(images).inside, [images.new_empty(0, *size) for size in sizes], self.localizes)
        options = zip(sizes, inside, strict=True)
        return [location_masks(anomaly_masks, size, mask_resize, guard, cells) for size, cells in options]

    def log_probs(
        self, images: Tensor, maps: Sequence[Tensor] | None = None, leave_out: Tensor | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Compute normality (see `Base.normality`) and variance at each scale, as maps (B, H_k, W_k)."""
        latents = self.encode(images, maps)
        return self.latent_log_probs(latents, self.score_log_det, leave_out), _variances(latents)

    def forward(self, images: Tensor, maps: Sequence[Tensor] | None = None) -> Prediction:
        """Compute what `predict` does, in eval mode too, but with gradients and from feature maps if they are known.

        This is the graph that is exported. Training uses `loss`. The range of images on a GPU is checked by `predict`
        only.
        """
        check_images(images, self.reference)
        if self.fitted and not torch.compiler.is_compiling():
            check_size(images, self.provenance, "images")
        with own_device(), self.reading() as still:
            return still._predict(images, maps)

    def _predict(self, images: Tensor, maps: Sequence[Tensor] | None) -> Prediction:
        seen, inside = self.see(images)
        if inside is not None and images.device.type != "cpu" and is_readable(inside):
            check_inside(inside)
        latents = self.encode_maps(self.features(seen) if maps is None else maps, seen)
        log_probs = self.latent_log_probs(latents, self.score_log_det)
        anomaly_map, score = self.score(log_probs, images.shape[2:], inside)
        own = self.base_scores(latents, log_probs, None, inside)
        score = score if own is None else own
        return Prediction(score, anomaly_map, _variances(latents), *self.calibration(score, anomaly_map))

    @per_batch
    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Predict images (B, C, H, W), float in [0, 1], each independent of the others of the batch.

        C is 1 for gray and 3 for RGB. With 2 or 4 channels, the last one is the region of interest: 1 inside it, 0
        outside.

        Images on the CPU are copied to the detector's device, where the prediction is. The host waits for a GPU
        only if images are on it already, have a region or are compared with a memory. With tiles (see `fit`), images
        have any size.

        Raises:
            ShapeError: If the images have another shape, type or range, or are on another device; or another size than
                that for which a recipe's detector was trained or calibrated.
        """
        if self.provenance.tiles is not None:
            return predict_tiles(self, images, self.provenance.tiles)
        if isinstance(images, Tensor) and self.device.type != "cpu":
            check_images(images, self.reference.new_empty(0, device=images.device))
            if images.device.type == "cpu":
                images = to_device(images, self.device)
            else:
                check_values(images)
        return cast(Prediction, self(images))


def _variances(latents: Sequence[Latents]) -> tuple[Tensor, ...]:
    return tuple(scale.statistics.variance() for scale in latents if scale.statistics is not None)
