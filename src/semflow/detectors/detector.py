"""The detector: frozen features, a flow a scale, a base with its variance head, an objective and a score."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from semflow._validation import checked
from semflow.bases import Base
from semflow.errors import ConfigError, ShapeError
from semflow.features import FeatureExtractor
from semflow.flows import PyramidFlow
from semflow.flows.standardize import ChannelMoments
from semflow.nn import PositionCode, VarianceHead
from semflow.objectives import Objective, Terms

from .calibration import Calibration
from .inputs import check_images, check_masks, location_masks
from .likelihood import Latents, LikelihoodModel
from .outputs import Gather, ImageBatch, Prediction
from .provenance import Provenance
from .scoring import Scorer

__all__ = ["Detector", "Gather", "ImageBatch", "Prediction"]


class Detector(LikelihoodModel):
    """Everything between an image and its heat map.

    Args:
        features: frozen backbone, images (B, 3, H, W) in [0, 1] to K maps.
        flows: one a scale, or a `PyramidFlow` of them all. One that begins with `Standardize` has it fitted by
            `prepare`.
        base: of the latents.
        head: variance head, or None for a base that needs no statistics.
        position: position code given to all flows as their context, or None.
        objective: the training loss.
        scorer: from log-probabilities to scores.
        score_log_det: score log p of the features, log-det included, instead of log p of the latents (Eq. 6).
        localizes: True if the anomaly map tells where; a detector of whole images has a map of one value.

    Attributes:
        provenance: how the detector was made, see `Provenance`. Nothing in the detector depends on it.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, sanflow
        >>> detector = sanflow(Backbone("resnet18", "random"), couplings=Couplings(2, 16))
        >>> prediction = detector.predict(torch.rand(2, 3, 64, 64))
        >>> prediction.score.shape, prediction.anomaly_map.shape, len(prediction.variance)
        (torch.Size([2]), torch.Size([2, 64, 64]), 3)
    """

    flexible: ClassVar[tuple[str, ...]] = ("calibration.",)
    """Prefixes of what a saved state may lack, or hold in another size."""

    @checked
    def __init__(
        self,
        features: FeatureExtractor,
        flows: Sequence[nn.Module] | PyramidFlow,
        base: Base,
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
            raise ConfigError(f"flows must be {len(features.channels)}, one a feature map, but got {scales}")
        self.scorer = scorer or Scorer(scales)
        self.calibration = Calibration()
        self.score_log_det, self.localizes = score_log_det, localizes
        self.provenance = Provenance()

    @property
    def map_range(self) -> tuple[float, float]:
        """A colour range for anomaly maps, from the normal training images: typical to hardly ever seen."""
        low, high = self.scorer.map_bounds.tolist()
        return low, high

    @property
    def device(self) -> torch.device:
        """Where its score is computed, and where images are to be."""
        return self.scorer.offsets.device

    @property
    def false_alarm_rate(self) -> float | None:
        """The rate that its decisions are made at; None where it is not calibrated."""
        return self.calibration.false_alarm_rate

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that training changes: all but the backbone's."""
        frozen = {id(p) for p in self.features.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in frozen]

    def encode(self, images: Tensor, maps: Sequence[Tensor] | None = None) -> list[Latents]:
        """Images (B, 3, H, W) in [0, 1] to the latents and statistics of each scale; `maps` are their features."""
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
        """The objective of all scales.

        Where each scale has a flow of its own, the sum: it is one step for each of them. Where the flow is joint, the
        mean weighted by the scales' dimensions: the terms per dimension of one distribution. Of images (B, 3, H, W) in
        [0, 1], masks (B, H, W), 1 where anomalous, or None if all is normal, and the images' features, if known. For
        `mask_resize` and `guard` see `location_masks`.
        """
        check_masks(anomaly_masks, images)
        latents = self.encode(images, maps)
        sizes = [(scale.z.shape[2], scale.z.shape[3]) for scale in latents]
        masks = [location_masks(anomaly_masks, size, mask_resize, guard) for size in sizes]
        return self.latent_loss(latents, [mask for mask, _ in masks], [ignored for _, ignored in masks])

    def log_probs(
        self, images: Tensor, maps: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Log-probability per dimension of being normal, and the variance, of each scale: maps (B, H_k, W_k)."""
        latents = self.encode(images, maps)
        variances = tuple(scale.statistics.variance() for scale in latents if scale.statistics is not None)
        return self.latent_log_probs(latents, self.score_log_det), variances

    def forward(self, images: Tensor, maps: Sequence[Tensor] | None = None) -> Prediction:
        """Compute a prediction in the current mode, without checks and without switching gradients off.

        This is the graph that is exported; `predict` is what you want otherwise.

        Args:
            images: (B, 3, H, W), float, RGB in [0, 1].
            maps: their features, if they are known.
        """
        log_probs, variances = self.log_probs(images, maps)
        anomaly_map, score = self._score(log_probs, images.shape[2:])
        return Prediction(score, anomaly_map, variances, *self.calibration(score, anomaly_map))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Scores, anomaly maps, variance maps and decisions. An image's are the same whatever it is batched with.

        Args:
            images: (B, 3, H, W), float, RGB in [0, 1].

        Raises:
            ShapeError: the images are not of that shape, type or range, or not on the detector's device.
        """
        check_images(images, next(self.flows.parameters(), images))
        with self.evaluating():
            return cast(Prediction, self(images))

    def _score(self, log_probs: Sequence[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
        """The anomaly map at that size and the image score; one value all over where the detector does not localise."""
        if self.localizes:
            anomaly_map, score = self.scorer(log_probs, (size[0], size[1]))
            return anomaly_map, score
        _, score = self.scorer(log_probs, (log_probs[0].shape[1], log_probs[0].shape[2]))
        return score[:, None, None].expand(-1, *size), score

    @torch.no_grad()
    def prepare(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> None:
        """Fit the standardisation of each scale to normal images, before training.

        Args:
            batches: images, perhaps with their maps; iterated over once.
            gather: brings the accounts of batches together where several processes share them out.
        """
        fitted = {k: flow for k, flow in enumerate(self.flows.standardizers()) if flow is not None}
        if not fitted:
            return

        def account(batch: ImageBatch) -> dict[int, ChannelMoments]:
            _, maps = self._with_maps(batch)
            moments = {k: flow.moments() for k, flow in fitted.items()}
            for k, moment in moments.items():
                moment.update(maps[k])
            return moments

        moments = {k: flow.moments() for k, flow in fitted.items()}
        for accounts in gather(map(account, batches)):
            for k, moment in moments.items():
                moment.merge(accounts[k])
        for k, flow in fitted.items():
            flow.set_moments(moments[k])

    @torch.no_grad()
    def fit_score(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> None:
        """Take the score's constants from normal training images: each scale's maximum, and the colour range.

        Scores then mean something else than before: a calibration is forgotten.

        Args:
            batches: images, perhaps with their maps; iterated over once.
            gather: brings what was made of each batch together where several processes share them out.
        """
        with self.evaluating():
            pairs = (self._with_maps(batch) for batch in batches)
            each = (([p.cpu() for p in self.log_probs(images, maps)[0]], images.shape[2:]) for images, maps in pairs)
            kept = list(gather(each))
        if not kept:
            raise ShapeError("batches must hold at least one batch of normal images, but got none")
        device = self.scorer.offsets.device
        scales = zip(*(log_probs for log_probs, _ in kept), strict=True)
        self.calibration.clear()
        self.scorer.take([max(p.max().item() for p in scale) for scale in scales])
        # A colour range needs no more than about a million pixels, whatever the data set.
        # An odd step does not fall into a column.
        step = sum(len(ps[0]) * size.numel() for ps, size in kept) // 2**20 | 1
        maps = (self._score([p.to(device) for p in ps], size)[0] for ps, size in kept)
        ordered = torch.cat([m.float().flatten()[::step].cpu() for m in maps]).sort().values
        low = ordered[len(ordered) // 2].item()
        high = ordered[min(len(ordered) - 1, int(0.9999 * len(ordered)))].item()
        # The colours run from a typical location to well beyond the rarest of training.
        self.scorer.map_bounds.copy_(torch.tensor([low, high + max(high - low, 1e-6)]))

    @torch.no_grad()
    def calibrate(
        self, batches: Iterable[ImageBatch], false_alarm_rate: float | None = None, gather: Gather = iter
    ) -> None:
        """Score normal images that were not trained on, for p-values, decisions and masks (see `Calibration`).

        Args:
            batches: images, perhaps with their maps; iterated over once. They must be as those to be judged will be:
                another camera, light or size makes the rates wrong, and so does an image that was trained on.
            false_alarm_rate: how many of the normal images may be called anomalous; None takes the lowest of 1, 5 and
                10 % that the number of images allows.
            gather: as in `fit_score`.

        Raises:
            ConfigError: there are too few images for the rate; the message says how many are needed.
            ShapeError: a score is not finite.
        """

        def highest(batch: ImageBatch) -> Tensor:
            with self.evaluating():
                score, anomaly_map, *_ = self(*self._with_maps(batch))
            return torch.stack([score, anomaly_map.flatten(1).amax(1)]).cpu()

        scores, maxima = torch.cat([torch.empty(2, 0), *gather(map(highest, batches))], 1).to(self.device)
        self.calibration.fit(scores, maxima, false_alarm_rate)

    def _with_maps(self, batch: ImageBatch) -> tuple[Tensor, Sequence[Tensor]]:
        return (batch, self.features(batch)) if isinstance(batch, Tensor) else batch
