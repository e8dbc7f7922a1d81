"""Passes over normal images that fit what is not trained: standardization, bases, score and calibration."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from semflow._defaults import own_device
from semflow.errors import ShapeError, TrainingError
from semflow.flows.standardize import ChannelMoments

from .calibration import Calibration
from .collapse import check_spread
from .colors import LEFT_OUT, SEEN, color_range, join_samples, sample_pixels, sampled_values
from .conformal import check_count
from .inputs import LOW, check_images
from .interface import Gather, ImageBatch, NormalBatch, Provenance
from .likelihood import Latents, LikelihoodModel
from .regions import Seen, at_scales, see
from .scoring import Scorer
from .tiled import predict_tiles


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
    region: Tensor | None

    @property
    def reference(self) -> Tensor:
        """Tensor of the device and the type of the detector, of the lowest precision that one of its tensors has."""
        low = (p for p in self.parameters() if p.dtype in LOW)
        return next(low, next(self.flows.parameters(), self.scorer.offsets))

    def see(self, images: Tensor) -> Seen:
        """Return images with gray pixels outside the region of interest, their own and that of the detector."""
        return see(images, self.region)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps of images (B, 3, H, W), or (B, 4, H, W) with their regions."""
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
        self, latents: Sequence[Latents], log_probs: Sequence[Tensor], inside: Tensor | None = None
    ) -> Tensor | None:
        """Compute the image score (B,) of bases that have their own, or None if no base has."""
        cells = at_scales(inside, log_probs, self.localizes)
        known = [p if m is None else torch.where(m, p, torch.inf) for p, m in zip(log_probs, cells, strict=True)]
        each = [base.image_score(scale.z, p) for base, scale, p in zip(self.bases, latents, known, strict=True)]
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
            found.append(self.latents_to_fit(maps, inside=inside))
        return {k: _stacked([one[k] for one in found]) for k in found[0]}

    @own_device()
    @torch.no_grad()
    def fit_score(self, batches: Iterable[ImageBatch], gather: Gather = iter) -> NormalScores:
        """Compute the maxima of the scales and the color range from normal training images; clear the calibration.

        The arguments are those of `prepare`. The images are those of `fit_base`, if there is a base to fit: each is
        scored as if the base had not seen it. A flow has seen them, so that `calibrate` sets a better color range.
        Return the scores, of several tiles of an image the highest, and the range of the maps.

        Raises:
            TrainingError: If a log-probability is not finite.
        """

        def scored(batch: NormalBatch) -> _Scored:
            images, inside = self.see(batch.images)
            latents = self.encode_maps(cast(Sequence[Tensor], batch.maps), images)
            log_probs = self.latent_log_probs(latents, self.score_log_det, batch.indices)
            own = self.base_scores(latents, log_probs, inside)
            own, inside = (None if x is None else x.cpu() for x in (own, inside))
            index = cast(Tensor, batch.indices).cpu()
            return _Scored([p.cpu() for p in log_probs], images.shape[2:], own, inside, index)

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
                raise TrainingError(
                    f"normality of normal images must be finite, but got {_first_not_finite(scale)} at scale {number}"
                )
        self.calibration.clear()
        if self.scorer.standardize:
            self.scorer.set_moments([s.mean().item() for s in scales], [s.std(correction=0).item() for s in scales])
        else:
            self.scorer.set_maxima([s.max().item() for s in scales])
        sampled, scores = [], []
        for ps, size, own, inside, _ in kept:
            anomaly_map, score = self.score(
                [p.to(device) for p in ps], size, None if inside is None else inside.to(device)
            )
            sampled.append(sample_pixels(anomaly_map))
            scores.append(score.cpu() if own is None else own)
        pixels = torch.cat(sampled)
        trained = any(p.requires_grad for p in self.flows.parameters())
        self.scorer.map_bounds.copy_(torch.tensor(color_range(pixels, SEEN if trained else LEFT_OUT)))
        ordered = sampled_values(pixels)
        low, high = (ordered[int(level * (len(ordered) - 1))].item() for level in (0.5, 0.9999))
        return NormalScores(_highest(torch.cat(scores), torch.cat([index for *_, index in kept])), low, high)

    @own_device()
    @torch.no_grad()
    def calibrate(
        self, batches: Iterable[ImageBatch], false_alarm_rate: float | None = None, gather: Gather = iter
    ) -> None:
        """Calibrate on held-out normal images: p-values, decisions and masks (see `Calibration`), and the color range.

        Args:
            batches: as in `prepare`, but not of training images. They must resemble later images: another camera,
                light or size makes the rates wrong. With tiles, batches of whole images.
            false_alarm_rate: fraction of normal images that may be called anomalous; None takes the lowest of 1, 5 and
                10 % that the number of images allows.
            gather: as in `prepare`.

        Raises:
            ConfigError: If there are too few images for the rate; the message names the number needed.
            TrainingError: If the scores or the maps of all images are the same, not finite, or as high as a score can
                be, so that no image would be called anomalous.
        """

        def highest(batch: NormalBatch) -> tuple[Tensor, Tensor]:
            score, anomaly_map, *_ = self(batch.images, batch.maps) if tiles is None else predict(batch.images, tiles)
            return torch.stack([score, anomaly_map.flatten(1).amax(1)]).cpu(), sample_pixels(anomaly_map)

        tiles, predict = self.provenance.tiles, partial(predict_tiles, self)
        found = list(gather(map(highest, self._complete(batches, features=tiles is None))))
        empty = torch.empty(2, 0, dtype=torch.float32)
        scores, maxima = torch.cat([empty, *(both for both, _ in found)], 1).to(self.scorer.offsets.device)
        if len(scores):
            check_spread(scores, maxima, self.scorer.ceilings, check_count(len(scores), false_alarm_rate))
        self.calibration.fit(scores, maxima, false_alarm_rate)
        self.scorer.map_bounds.copy_(torch.tensor(color_range(join_samples([pixels for _, pixels in found]))))
        self.provenance = replace(self.provenance, calibration="")  # of images that nobody has hashed

    def _complete(self, batches: Iterable[ImageBatch], features: bool = True) -> Iterator[NormalBatch]:
        """Add what is missing of feature maps, if they are needed, and indices, which then count the images."""
        count = 0
        for batch in batches:
            images, maps, indices = NormalBatch(batch) if isinstance(batch, Tensor) else NormalBatch(*batch)
            if maps is None and features:
                check_images(images, self.reference)
                maps = self.feature_maps(images)
            if indices is None:
                indices = torch.arange(count, count + len(images), device=images.device)
            count += len(images)
            yield NormalBatch(images, maps, indices)


class _Scored(NamedTuple):
    """Normality of a batch at each scale, size of its images, their own scores and regions, and their indices in the data set."""

    log_probs: list[Tensor]
    size: torch.Size
    own: Tensor | None
    inside: Tensor | None
    images: Tensor


def _highest(scores: Tensor, images: Tensor) -> Tensor:
    """Return the highest of the scores of each image, in the order of the images' indices."""
    places = images.unique(return_inverse=True)[1]
    return scores.new_zeros(int(places.max()) + 1).scatter_reduce_(0, places, scores, "amax", include_self=False)


def _stacked(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack maps along the height, and their regions if any has one."""
    if len(parts) == 1:
        return parts[0]
    tall = {name: torch.cat([part[name] for part in parts], 2) for name in parts[0] if name != "inside"}
    if any("inside" in part for part in parts):
        every = [part.get("inside", torch.ones_like(part["z"][:, 0], dtype=torch.bool)) for part in parts]
        tall["inside"] = torch.cat(every, 1)
    return tall


def _first_not_finite(x: Tensor) -> float:
    return float(x[~x.isfinite()][0])
