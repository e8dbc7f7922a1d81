"""Passes over normal images that fit what is not trained: standardization, bases, score and calibration."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from semflow._defaults import own_device
from semflow._memory import per_batch, trimming
from semflow.bases import FittedBase
from semflow.errors import ConfigError, ShapeError, TrainingError
from semflow.flows.optional import used_parameters
from semflow.flows.standardize import ChannelMoments

from .calibration import Calibration, check_categories
from .collapse import check_spread
from .colors import LEFT_OUT, SEEN, color_range
from .conformal import check_count
from .inputs import LOW, check_images
from .interface import Gather, ImageBatch, NormalBatch, Provenance
from .likelihood import Latents, LikelihoodModel
from .normal_scores import NormalScores, Scored, highest, stacked
from .regions import Seen, at_scales, see
from .scoring import Scorer
from .tiled import predict_tiles


class FittingPasses(LikelihoodModel):
    """Likelihood model with features, a score and a calibration, and the passes that fit them; see `Detector`."""

    features: nn.Module
    scorer: Scorer
    calibration: Calibration
    provenance: Provenance
    localizes: bool
    score_log_det: bool
    region: Tensor | None

    @property
    def reference(self) -> Tensor:
        """Tensor of the device and the type of the detector, of the lowest precision that one of its tensors has."""
        low = (p for p in self.parameters() if p.dtype in LOW)
        return next(low, next(self.flows.parameters(), self.scorer.offsets))

    def see(self, images: Tensor) -> Seen:
        """Return images in three channels, gray outside their region of interest and that of the detector."""
        return see(images, self.region)

    @per_batch
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps of images (B, C, H, W), see `Sample`."""
        return cast(list[Tensor], self.features(self.see(images).images))

    def score(
        self, log_probs: Sequence[Tensor], size: torch.Size, inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the anomaly map, constant if the detector does not localize, and the image score.

        Outside the region of interest (B, H, W) the map is -inf; None is everywhere.
        """
        if self.localizes:
            return cast(tuple[Tensor, Tensor], self.scorer(log_probs, (size[0], size[1]), inside))
        _, score = self.scorer(log_probs, (log_probs[0].shape[1], log_probs[0].shape[2]))
        anomaly_map = score[:, None, None].expand(-1, *size)
        return anomaly_map if inside is None else torch.where(inside, anomaly_map, -torch.inf), score

    def base_scores(
        self,
        latents: Sequence[Latents],
        log_probs: Sequence[Tensor],
        leave_out: Tensor | None = None,
        inside: Tensor | None = None,
    ) -> Tensor | None:
        """Compute the image score (B,) of bases that have their own, or None if no base has."""
        each, cells = [], at_scales(inside, log_probs, self.localizes)
        for base, scale, p, counted in zip(self.bases, latents, log_probs, cells, strict=True):
            left = {"leave_out": leave_out} if isinstance(base, FittedBase) and base.leaves_out else {}
            known = p if counted is None else torch.where(counted, p, torch.inf)
            each.append(base.image_score(scale.z, known, **left))
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

        def moments_of(batch: NormalBatch) -> dict[int, ChannelMoments]:
            moments = {k: flow.moments() for k, flow in fitted.items()}
            maps = cast(Sequence[Tensor], batch.maps)
            inside = at_scales(self.see(batch.images).inside, maps, self.localizes)
            for k, moment in moments.items():
                cells = inside[k]
                moment.update(maps[k] if cells is None else maps[k].permute(0, 2, 3, 1)[cells].T[None, :, None])
            return moments

        moments = {k: flow.moments() for k, flow in fitted.items()}
        for found in gather(map(moments_of, self._complete(batches))):
            for k, moment in moments.items():
                moment.merge(found[k])
        for k, flow in fitted.items():
            flow.set_moments(moments[k])

    @own_device()
    @torch.no_grad()
    def fit_base(
        self,
        batches: Iterable[ImageBatch],
        gather: Gather = iter,
        copies: Callable[[NormalBatch], Iterable[Tensor]] | None = None,
        images: Tensor | None = None,
    ) -> None:
        """Fit each `FittedBase` to the latents of normal images, in one pass after training.

        Every process gets the latents of all images, in their order, and so the same bases.

        Args:
            batches: as in `prepare`.
            gather: as in `prepare`.
            copies: returns changed copies of the images of a batch, whose latents join those of their image.
            images: (n,) int64, the image of each of the n items of the batches, if they are tiles. A base that leaves
                an image out then leaves out all of its tiles.
        """
        if not self.fitted_bases:
            return
        with self.evaluating():
            self.fit_latents(gather(self._to_fit(batch, copies) for batch in self._complete(batches)), images)

    def _to_fit(
        self, batch: NormalBatch, copies: Callable[[NormalBatch], Iterable[Tensor]] | None
    ) -> dict[int, dict[str, Tensor]]:
        """Return the latents of a batch, with those of copies below them in taller maps: of one image."""
        found: list[dict[int, dict[str, Tensor]]] = []
        for images in (batch.images, *(() if copies is None else copies(batch))):
            maps = self.feature_maps(images) if found or batch.maps is None else batch.maps
            inside = at_scales(self.see(images).inside, maps, self.localizes)
            found.append(self.latents_to_fit(maps, inside=inside, known=None if found else batch.latents))
        return {k: stacked([one[k] for one in found]) for k in found[0]}

    @own_device()
    @torch.no_grad()
    def fit_score(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> NormalScores:
        """Compute the maxima of the scales and the color range from normal training images; clear the calibration.

        The arguments are those of `prepare`. The images are those of `fit_base`, if there is a base to fit: each is
        scored as if the base had not seen it. A flow has seen them, so that `calibrate` sets a better color range.
        Return the scores and pixels of the maps; of several tiles of an image the highest.

        Raises:
            TrainingError: If a log-probability is not finite.
        """

        @per_batch
        def scored(batch: NormalBatch) -> Scored:
            images, inside = self.see(batch.images)
            latents = batch.latents
            if latents is None:
                latents = self.encode_maps(cast(Sequence[Tensor], batch.maps), images)
            log_probs = self.latent_log_probs(latents, self.score_log_det, batch.indices)
            own = self.base_scores(latents, log_probs, batch.indices, inside)
            own, inside = (None if x is None else x.cpu() for x in (own, inside))
            index = cast(Tensor, batch.indices).cpu()
            return Scored([p.cpu() for p in log_probs], images.shape[2:], own, inside, index)

        with self.evaluating():
            kept = list(gather(map(scored, self._complete(batches))))
        if not kept:
            raise ShapeError("batches must hold at least one batch of normal images, but got none")
        device = self.scorer.offsets.device
        cells = [at_scales(inside, ps, self.localizes) for ps, _, _, inside, _ in kept]
        counted = [
            [p.flatten() if m is None else p[m] for p, m in zip(kept[i][0], cells[i], strict=True)]
            for i in range(len(kept))
        ]
        scales = [torch.cat(scale) for scale in zip(*counted, strict=True)]
        for number, scale in enumerate(scales):
            if not scale.isfinite().all():
                wrong = scale[~scale.isfinite()][0].item()
                raise TrainingError(f"normality of normal images must be finite, but got {wrong} at scale {number}")
        self.calibration.clear()
        if self.scorer.standardize:
            self.scorer.set_moments([s.mean().item() for s in scales], [s.std(correction=0).item() for s in scales])
        else:
            self.scorer.set_maxima([s.max().item() for s in scales])
        parts = []
        for ps, size, own, inside, _ in trimming(kept):
            region = None if inside is None else inside.to(device)
            anomaly_map, score = self.score([p.to(device) for p in ps], size, region)
            parts.append(NormalScores.of(score if own is None else own.to(device), anomaly_map))
        found = NormalScores.join(parts)
        trained = any(p.requires_grad for p in used_parameters(self.flows))
        self.scorer.map_bounds.copy_(torch.tensor(color_range(found.pixels, SEEN if trained else LEFT_OUT)))
        index = torch.cat([index for *_, index in kept])
        return found._replace(scores=highest(found.scores, index), maxima=highest(found.maxima, index))

    @own_device()
    @torch.no_grad()
    def calibrate(
        self,
        batches: Iterable[ImageBatch],
        false_alarm_rate: float | None = None,
        gather: Gather = iter,
        categories: Sequence[str] = (),
    ) -> None:
        """Calibrate on held-out normal images: p-values, decisions and masks (see `Calibration`), and the color range.

        Args:
            batches: as in `prepare`, but not of training images. They must resemble later images: another camera,
                light or size makes the rates wrong. With tiles, batches of whole images.
            false_alarm_rate: fraction of normal images that may be called anomalous; None takes the lowest of 1, 5 and
                10 % that the number of images allows.
            gather: as in `prepare`.
            categories: the category of each image, see `set_category`.

        Raises:
            ConfigError: If there are too few images for the rate; the message names the number needed.
            TrainingError: If the scores or the maps of all images are the same, not finite, or as high as a score can
                be, so that no image would be called anomalous.
        """
        self.calibrate_on(self.score_normal(batches, gather), false_alarm_rate, categories=categories)

    @own_device()
    @torch.no_grad()
    def score_normal(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> NormalScores:
        """Compute what `calibrate_on` takes from normal images that were not trained on; arguments as in `prepare`."""

        @per_batch
        def scored(batch: NormalBatch) -> NormalScores:
            score, anomaly_map, *_ = self(batch.images, batch.maps) if tiles is None else predict(batch.images, tiles)
            return NormalScores.of(score, anomaly_map)

        tiles, predict = self.provenance.tiles, partial(predict_tiles, self)
        return NormalScores.join(gather(map(scored, self._complete(batches, features=tiles is None))))

    @own_device()
    @torch.no_grad()
    def calibrate_on(
        self,
        found: NormalScores,
        false_alarm_rate: float | None = None,
        origin: str = "",
        categories: Sequence[str] = (),
    ) -> None:
        """Calibrate on the scores of images by a detector that has not seen them.

        Args:
            found: from `score_normal`, or from `fit_score` if bases leave out what an image has contributed.
            false_alarm_rate: as in `calibrate`.
            origin: recorded as `Provenance.calibration`.
            categories: as in `calibrate`.
        """
        scores, maxima = (x.to(self.scorer.offsets.device) for x in found[:2])
        names = check_categories(categories, self.provenance.categories)
        if names and len(categories) != len(scores):
            raise ShapeError(f"categories must be {len(scores)} names, one for each image, but got {len(categories)}")
        numbers = torch.tensor([names.index(name) for name in categories] or [0] * len(scores), device=scores.device)
        for number, name in enumerate(names or ("",) if len(scores) else ()):
            own = numbers == number
            rate = check_count(int(own.sum()), false_alarm_rate, name)
            check_spread(scores[own], maxima[own], self.scorer.ceilings, rate)
        self.calibration.fit(scores, maxima, false_alarm_rate, numbers.tolist() if names else None)
        self.scorer.map_bounds.copy_(torch.tensor(color_range(found.pixels)))
        names = names or self.provenance.categories
        self.provenance = replace(self.provenance, calibration=origin, categories=names)

    @property
    def decides_for(self) -> tuple[str, ...]:
        """Categories that `set_category` knows: those of the calibration."""
        return self.provenance.categories if self.calibration.categories else ()

    def set_category(self, name: str | None) -> None:
        """Decide by the calibration images of one category; None, the default, decides by those of all."""
        if name is not None and name not in self.decides_for:
            known = f"one of {', '.join(self.decides_for)}" if self.decides_for else "None without categories"
            raise ConfigError(f"category must be {known}, but got {name!r}")
        self.calibration.choose(None if name is None else self.decides_for.index(name))

    def _complete(self, batches: Iterable[ImageBatch], features: bool = True) -> Iterator[NormalBatch]:
        """Add what is missing of feature maps, if they are needed, and indices, which then count the images."""
        count = 0
        for batch in batches:
            images, maps, indices, latents = NormalBatch(batch) if isinstance(batch, Tensor) else NormalBatch(*batch)
            if maps is None and features:
                check_images(images, self.reference)
                maps = self.feature_maps(images)
            if indices is None:
                indices = torch.arange(count, count + len(images), device=images.device)
            count += len(images)
            yield NormalBatch(images, maps, indices, latents)
