"""Passes over normal images that fit what is not trained: standardization, bases, score and calibration."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from semflow._defaults import own_device
from semflow._memory import per_batch
from semflow.errors import ShapeError, TrainingError
from semflow.flows.standardize import ChannelMoments

from .calibration import Calibration
from .collapse import check_spread
from .colors import LEFT_OUT, SEEN, color_range, sample_pixels
from .conformal import check_count
from .inputs import LOW, check_images
from .interface import Gather, ImageBatch, NormalBatch, Provenance
from .likelihood import Latents, LikelihoodModel
from .scoring import Scorer


class NormalScores(NamedTuple):
    """Scores (n,) of normal images, and the range of their maps, from a typical to the rarest value.

    Example:
        >>> NormalScores(torch.tensor([0.3, 0.2]), low=0.1, high=0.8).scores.max().item() < 0.8
        True
    """

    scores: Tensor
    low: float
    high: float


class FittingPasses(LikelihoodModel):
    """Likelihood model with features, a score and a calibration, and the passes that fit them; see `Detector`."""

    features: nn.Module
    scorer: Scorer
    calibration: Calibration
    provenance: Provenance
    localizes: bool
    score_log_det: bool

    @property
    def reference(self) -> Tensor:
        """Tensor of the device and the type of the detector, of the lowest precision that one of its tensors has."""
        low = (p for p in self.parameters() if p.dtype in LOW)
        return next(low, next(self.flows.parameters(), self.scorer.offsets))

    def score(self, log_probs: Sequence[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
        """Compute the anomaly map, constant if the detector does not localize, and the image score."""
        if self.localizes:
            return cast(tuple[Tensor, Tensor], self.scorer(log_probs, (size[0], size[1])))
        _, score = self.scorer(log_probs, (log_probs[0].shape[1], log_probs[0].shape[2]))
        return score[:, None, None].expand(-1, *size), score

    def base_scores(self, latents: Sequence[Latents], log_probs: Sequence[Tensor]) -> Tensor | None:
        """Compute the image score (B,) of bases that have their own, or None if no base has."""
        each = [base.image_score(scale.z, p) for base, scale, p in zip(self.bases, latents, log_probs, strict=True)]
        own = [found for found in each if found is not None]
        return torch.stack(own).mean(0) if own else None

    @own_device()
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

        @per_batch
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

    @own_device()
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

    @own_device()
    @torch.no_grad()
    def fit_score(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> NormalScores:
        """Compute the maxima of the scales and the color range from normal training images; clear the calibration.

        The arguments are those of `prepare`. The images are those of `fit_base`, if there is a base to fit: each is
        scored as if the base had not seen it. A flow has seen them, so that `calibrate` sets a better color range.
        Return the scores and the range of the maps.

        Raises:
            TrainingError: If a log-probability is not finite.
        """

        @per_batch
        def scored(batch: NormalBatch) -> tuple[list[Tensor], torch.Size, Tensor | None]:
            latents = self.encode_maps(cast(Sequence[Tensor], batch.maps), batch.images)
            log_probs = self.latent_log_probs(latents, self.score_log_det, batch.indices)
            own = self.base_scores(latents, log_probs)
            return [p.cpu() for p in log_probs], batch.images.shape[2:], None if own is None else own.cpu()

        with self.evaluating():
            kept = list(gather(map(scored, self._complete(batches))))
        if not kept:
            raise ShapeError("batches must hold at least one batch of normal images, but got none")
        device = self.scorer.offsets.device
        scales = [torch.cat([p.flatten() for p in scale]) for scale in zip(*(ps for ps, *_ in kept), strict=True)]
        for number, scale in enumerate(scales):
            if not scale.isfinite().all():
                raise TrainingError(
                    f"normality of normal images must be finite, but got {_first_not_finite(scale)} at scale {number}"
                )
        self.calibration.clear()
        if self.scorer.standardize:
            self.scorer.set_moments([s.mean().item() for s in scales], [s.std(correction=0).item() for s in scales])
        else:
            self.scorer.set_maxima([s.max().item() for s in scales])
        sampled, scores = [], []
        for ps, size, own in kept:
            anomaly_map, score = self.score([p.to(device) for p in ps], size)
            sampled.append(sample_pixels(anomaly_map))
            scores.append(score.cpu() if own is None else own)
        pixels = torch.cat(sampled)
        trained = any(p.requires_grad for p in self.flows.parameters())
        self.scorer.map_bounds.copy_(torch.tensor(color_range(pixels, SEEN if trained else LEFT_OUT)))
        ordered = pixels[:, 1:].flatten().sort().values
        low, high = (ordered[int(level * (len(ordered) - 1))].item() for level in (0.5, 0.9999))
        return NormalScores(torch.cat(scores), low, high)

    @own_device()
    @torch.no_grad()
    def calibrate(
        self, batches: Iterable[ImageBatch], false_alarm_rate: float | None = None, gather: Gather = iter
    ) -> None:
        """Calibrate on held-out normal images: p-values, decisions and masks (see `Calibration`), and the color range.

        Args:
            batches: as in `prepare`, but not of training images. They must resemble later images: another camera,
                light or size makes the rates wrong.
            false_alarm_rate: fraction of normal images that may be called anomalous; None takes the lowest of 1, 5 and
                10 % that the number of images allows.
            gather: as in `prepare`.

        Raises:
            ConfigError: If there are too few images for the rate; the message names the number needed.
            TrainingError: If the scores or the maps of all images are the same, not finite, or as high as a score can
                be, so that no image would be called anomalous.
        """

        @per_batch
        def highest(batch: NormalBatch) -> tuple[Tensor, Tensor]:
            score, anomaly_map, *_ = self(batch.images, batch.maps)
            return torch.stack([score, anomaly_map.flatten(1).amax(1)]).cpu(), sample_pixels(anomaly_map)

        found = list(gather(map(highest, self._complete(batches))))
        empty = torch.empty(2, 0, dtype=torch.float32)
        scores, maxima = torch.cat([empty, *(both for both, _ in found)], 1).to(self.scorer.offsets.device)
        if len(scores):
            check_spread(scores, maxima, self.scorer.ceilings, check_count(len(scores), false_alarm_rate))
        self.calibration.fit(scores, maxima, false_alarm_rate)
        self.scorer.map_bounds.copy_(torch.tensor(color_range(torch.cat([pixels for _, pixels in found]))))
        self.provenance = replace(self.provenance, calibration="")  # of images that nobody has hashed

    def _complete(self, batches: Iterable[ImageBatch]) -> Iterator[NormalBatch]:
        """Add what is missing of feature maps and indices, which then count the images."""
        count = 0
        for batch in batches:
            images, maps, indices = NormalBatch(batch) if isinstance(batch, Tensor) else NormalBatch(*batch)
            if maps is None:
                check_images(images, self.reference)
            if indices is None:
                indices = torch.arange(count, count + len(images), device=images.device)
            count += len(images)
            yield NormalBatch(images, per_batch(self.features)(images) if maps is None else maps, indices)


def _first_not_finite(x: Tensor) -> float:
    return float(x[~x.isfinite()][0])
