"""The detector: features, a likelihood model of them, a score and its calibration."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from semflow._validation import checked
from semflow.bases import Base, FittedBase
from semflow.errors import ConfigError, ShapeError
from semflow.features import FeatureExtractor
from semflow.flows import PyramidFlow
from semflow.flows.standardize import ChannelMoments
from semflow.nn import PositionCode, VarianceHead
from semflow.objectives import Objective, Terms

from .calibration import Calibration
from .inputs import check_images, check_masks, location_masks
from .interface import Gather, ImageBatch, NormalBatch, Prediction, Provenance
from .likelihood import Latents, LikelihoodModel
from .scoring import Scorer


class Detector(LikelihoodModel):
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
        super().__init__(flows, base, head, position, objective)
        self.features = cast(nn.Module, features)
        if (scales := len(self.flows.events)) != len(features.channels):
            raise ConfigError(f"flows must be {len(features.channels)}, one per feature map, but got {scales}")
        self.scorer = scorer or Scorer(scales)
        self.calibration = Calibration()
        self.score_log_det, self.localizes = score_log_det, localizes
        self.provenance = Provenance()

    @property
    def flexible(self) -> dict[str, int]:
        """Prefixes of names that a saved state may lack or hold in other lengths, with the largest number of values.

        Their modules check what they load.
        """
        found = {}
        for name, module in self.named_modules():
            if isinstance(module, Calibration):
                found[f"{name}."] = module.largest
            elif isinstance(module, FittedBase):  # its prior is as fixed as any other module
                found |= {f"{name}.{buffer}": module.largest for buffer, _ in module.named_buffers(recurse=False)}
        return found

    @property
    def map_range(self) -> tuple[float, float]:
        """Color range for anomaly maps, from the typical to the rarest values of normal training images."""
        low, high = self.scorer.map_bounds.tolist()
        return low, high

    @property
    def device(self) -> torch.device:
        """Device of the detector, and of the images that it takes."""
        return self.scorer.offsets.device

    @property
    def false_alarm_rate(self) -> float | None:
        """False-alarm rate of decisions, or None without calibration."""
        return self.calibration.false_alarm_rate

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that training changes: all but those of the backbone."""
        frozen = {id(p) for p in self.features.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in frozen]

    def encode(self, images: Tensor, maps: Sequence[Tensor] | None = None) -> list[Latents]:
        """Map images (B, 3, H, W) in [0, 1], with their feature maps if known, to the latents of each scale."""
        maps = self.features(images) if maps is None else maps
        return self.encode_maps(maps, images)

    def loss(
        self,
        images: Tensor,
        anomaly_masks: Tensor | None = None,
        maps: Sequence[Tensor] | None = None,
        mask_resize: Literal["nearest", "max"] = "max",
        guard: int = 1,
    ) -> Terms:
        """Compute the objective over all scales, see `LikelihoodModel.latent_loss`.

        Args:
            images: (B, 3, H, W) in [0, 1].
            anomaly_masks: (B, H, W), 1 where anomalous; None if all is normal.
            maps: feature maps of the images, if known.
            mask_resize: see `location_masks`.
            guard: see `location_masks`.
        """
        check_masks(anomaly_masks, images)
        latents = self.encode(images, maps)
        sizes = [(scale.z.shape[2], scale.z.shape[3]) for scale in latents]
        masks = [location_masks(anomaly_masks, size, mask_resize, guard) for size in sizes]
        return self.latent_loss(latents, [mask for mask, _ in masks], [ignored for _, ignored in masks])

    def log_probs(
        self, images: Tensor, maps: Sequence[Tensor] | None = None, leave_out: Tensor | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Compute normality (see `Base.normality`) and variance at each scale, as maps (B, H_k, W_k)."""
        latents = self.encode(images, maps)
        return self.latent_log_probs(latents, self.score_log_det, leave_out), _variances(latents)

    def forward(self, images: Tensor, maps: Sequence[Tensor] | None = None) -> Prediction:
        """Compute a prediction in the current mode, without checks and with gradients.

        This is the graph that is exported; use `predict` otherwise.
        """
        latents = self.encode(images, maps)
        log_probs = self.latent_log_probs(latents, self.score_log_det)
        anomaly_map, score = self._score(log_probs, images.shape[2:])
        each = [base.image_score(scale.z, p) for base, scale, p in zip(self.bases, latents, log_probs, strict=True)]
        if own := [found for found in each if found is not None]:
            score = torch.stack(own).mean(0)
        return Prediction(score, anomaly_map, _variances(latents), *self.calibration(score, anomaly_map))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Predict images (B, 3, H, W), float RGB in [0, 1], each independent of the others of the batch.

        Raises:
            ShapeError: If the images have another shape, type or range, or are on another device.
        """
        check_images(images, next(self.flows.parameters(), images))
        with self.evaluating():
            return cast(Prediction, self(images))

    def _score(self, log_probs: Sequence[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
        """Compute the anomaly map, constant if the detector does not localize, and the image score."""
        if self.localizes:
            return cast(tuple[Tensor, Tensor], self.scorer(log_probs, (size[0], size[1])))
        _, score = self.scorer(log_probs, (log_probs[0].shape[1], log_probs[0].shape[2]))
        return score[:, None, None].expand(-1, *size), score

    @torch.no_grad()
    def prepare(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> None:
        """Fit the standardization of each scale to normal images, before training.

        Args:
            batches: images, with their feature maps if known; iterated over once.
            gather: collects the results of several processes.
        """
        fitted = {k: flow for k, flow in enumerate(self.flows.standardizers()) if flow is not None}
        if not fitted:
            return

        def moments_of(batch: NormalBatch) -> dict[int, ChannelMoments]:
            moments = {k: flow.moments() for k, flow in fitted.items()}
            for k, moment in moments.items():
                moment.update(cast(Sequence[Tensor], batch.maps)[k])
            return moments

        moments = {k: flow.moments() for k, flow in fitted.items()}
        for found in gather(map(moments_of, self._complete(batches))):
            for k, moment in moments.items():
                moment.merge(found[k])
        for k, flow in fitted.items():
            flow.set_moments(moments[k])

    @torch.no_grad()
    def fit_base(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> None:
        """Fit each `FittedBase` to the latents of normal images, in one pass after training.

        The arguments are those of `prepare`. Every process gets the latents of all images, in their order, and so the
        same bases.
        """
        if not self.fitted_bases:
            return
        with self.evaluating():
            each = (self.latents_to_fit(cast(Sequence[Tensor], batch.maps)) for batch in self._complete(batches))
            self.fit_latents(gather(each))

    @torch.no_grad()
    def fit_score(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> None:
        """Compute the maxima of the scales and the color range from normal training images; clear the calibration.

        The arguments are those of `prepare`. The images are those of `fit_base`, if there is a base to fit: each is
        scored as if the base had not seen it.
        """

        def scored(batch: NormalBatch) -> tuple[list[Tensor], torch.Size]:
            log_probs, _ = self.log_probs(batch.images, batch.maps, batch.indices)
            return [p.cpu() for p in log_probs], batch.images.shape[2:]

        with self.evaluating():
            kept = list(gather(map(scored, self._complete(batches))))
        if not kept:
            raise ShapeError("batches must hold at least one batch of normal images, but got none")
        device = self.scorer.offsets.device
        scales = [torch.cat([p.flatten() for p in scale]) for scale in zip(*(ps for ps, _ in kept), strict=True)]
        self.calibration.clear()
        if self.scorer.standardize:
            self.scorer.set_moments([s.mean().item() for s in scales], [s.std(correction=0).item() for s in scales])
        else:
            self.scorer.set_maxima([s.max().item() for s in scales])
        # About a million pixels are enough for a color range; an odd step does not follow a column.
        step = sum(len(ps[0]) * size.numel() for ps, size in kept) // 2**20 | 1
        maps = (self._score([p.to(device) for p in ps], size)[0] for ps, size in kept)
        ordered = torch.cat([m.float().flatten()[::step].cpu() for m in maps]).sort().values
        low = ordered[len(ordered) // 2].item()
        high = ordered[min(len(ordered) - 1, int(0.9999 * len(ordered)))].item()
        # From a typical location to well beyond the rarest of training.
        self.scorer.map_bounds.copy_(torch.tensor([low, high + max(high - low, 1e-6)]))

    @torch.no_grad()
    def calibrate(
        self, batches: Iterable[ImageBatch], false_alarm_rate: float | None = None, gather: Gather = iter
    ) -> None:
        """Calibrate on scores of held-out normal images, for p-values, decisions and masks (see `Calibration`).

        Args:
            batches: as in `prepare`, but not of training images. They must resemble later images: another camera,
                light or size makes the rates wrong.
            false_alarm_rate: fraction of normal images that may be called anomalous; None takes the lowest of 1, 5 and
                10 % that the number of images allows.
            gather: as in `prepare`.

        Raises:
            ConfigError: If there are too few images for the rate; the message names the number needed.
        """

        def highest(batch: NormalBatch) -> Tensor:
            with self.evaluating():
                score, anomaly_map, *_ = self(batch.images, batch.maps)
            return torch.stack([score, anomaly_map.flatten(1).amax(1)]).cpu()

        found = gather(map(highest, self._complete(batches)))
        scores, maxima = torch.cat([torch.empty(2, 0), *found], 1).to(self.device)
        self.calibration.fit(scores, maxima, false_alarm_rate)
        self.provenance = replace(self.provenance, calibration="")  # of images that nobody has hashed

    def _complete(self, batches: Iterable[ImageBatch]) -> Iterator[NormalBatch]:
        """Add what is missing of feature maps and indices, which then count the images."""
        count = 0
        for batch in batches:
            images, maps, indices = NormalBatch(batch) if isinstance(batch, Tensor) else NormalBatch(*batch)
            if indices is None:
                indices = torch.arange(count, count + len(images), device=images.device)
            count += len(images)
            yield NormalBatch(images, self.features(images) if maps is None else maps, indices)


def _variances(latents: Sequence[Latents]) -> tuple[Tensor, ...]:
    return tuple(scale.statistics.variance() for scale in latents if scale.statistics is not None)
