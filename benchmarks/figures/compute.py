"""Content of the figures, from a detector: maps of single images, and histograms over a test set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from semflow import Detector
from semflow.bases import SemanticGaussian
from semflow.data import Sample, collate
from semflow.detectors import Latents, location_masks
from semflow.objectives import log_likelihood
from semflow.training import TrainingConfig
from semflow.training.loading import batches

Map = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """An image and a detector's maps of it, (H, W), or (H_k, W_k) at scale k.

    Args:
        image: (H, W, 3) in [0, 1].
        mask: true where anomalous, or None.
        name: of the file.
        score: the anomaly map.
        variances: the predicted variance of each scale; empty without statistics.
        normal: -log p(v | normal) per dimension, mean over the scales: the map of Z^n (Eq. 3 and 6).
        anomalous: log p(v | anomalous) per dimension: the map of Z^a (Eq. 3 and 7); None without an anomalous mean.
        posterior: 1 - s(z) of Eq. 8 at the temperature C, mean over the scales; None without an anomalous mean.
        means: predicted normal and anomalous mean of each scale (models 3b and 3c); empty for other models.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    name: str
    score: Map
    normal: Map
    variances: list[Map] = field(default_factory=list)
    anomalous: Map | None = None
    posterior: Map | None = None
    means: list[tuple[Map, Map]] = field(default_factory=list)


@torch.no_grad()
def views(detector: Detector, samples: Sequence[Sample]) -> list[View]:
    """Compute the views of samples of one size."""
    if not samples:
        return []
    device = next(detector.flows.parameters()).device
    batch = collate(samples)
    images = batch.images.to(device)
    detector.eval()
    prediction = detector.predict(images)
    size = (images.shape[2], images.shape[3])
    base = detector.base if isinstance(detector.base, SemanticGaussian) else None
    normal, anomalous, posterior, means = [], [], [], []
    for z, log_det, event, statistics in detector.encode(images):
        channels = z.shape[1]
        # As in the detector's score: with the log-det, if the flow has one per location.
        counted = log_det if detector.score_log_det and event == "location" else torch.zeros_like(z[:, 0])
        log_normal = log_likelihood(detector.base.log_prob(z, statistics), counted, "location")
        normal.append(_enlarge(-log_normal / channels, size))
        if base is not None and statistics is not None:
            everywhere = torch.ones(z.shape[0], *z.shape[2:], device=device)
            log_anomalous = log_likelihood(base.log_prob(z, statistics, everywhere), counted, "location")
            anomalous.append(_enlarge(log_anomalous / channels, size))
            posterior.append(_enlarge(torch.sigmoid(-base.log_odds(z, statistics) / channels), size))
            if statistics.normal_shift is not None and statistics.anomaly_shift is not None:
                shifts = (statistics.normal_shift[:, 0], statistics.anomaly_shift[:, 0])
                means.append((base.normal_mean + shifts[0], base.anomaly_mean + shifts[1]))
    return [
        View(
            image=sample.image.expand(3, -1, -1).permute(1, 2, 0).numpy(),
            mask=None if sample.anomaly_mask is None else sample.anomaly_mask.numpy(),
            name=sample.path,
            score=_array(prediction.anomaly_map[k]),
            normal=_array(torch.stack(normal).mean(0)[k]),
            variances=[_array(v[k]) for v in prediction.variance],
            anomalous=_array(torch.stack(anomalous).mean(0)[k]) if anomalous else None,
            posterior=_array(torch.stack(posterior).mean(0)[k]) if posterior else None,
            means=[(_array(n[k]), _array(a[k])) for n, a in means],
        )
        for k, sample in enumerate(samples)
    ]


@dataclass(frozen=True)
class Histogram:
    """Histograms of a quantity at normal and at anomalous locations of one scale."""

    scale: int
    edges: NDArray[np.float64]
    normal: NDArray[np.int64]
    anomalous: NDArray[np.int64]

    @property
    def overlap(self) -> float:
        """The area that the two normalized histograms share, in [0, 1]."""
        if not self.normal.sum() or not self.anomalous.sum():
            return 0.0
        shares = np.minimum(self.normal / self.normal.sum(), self.anomalous / self.anomalous.sum())
        return float(shares.sum())


def histograms(detector: Detector, dataset: Dataset[Sample], bins: int = 60) -> list[Histogram]:
    """Return a histogram for each scale of the mean over the channels of the latent z at all locations of a test set.

    Locations are marked as in training: those at the border of an anomaly, which it ignores, are left out.
    """
    training = detector.provenance.training or TrainingConfig()

    def parts(latent: Latents, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        means = latent.z.float().mean(1).cpu()
        mask, ignore = location_masks(masks, (means.shape[1], means.shape[2]), training.mask_resize, training.guard)
        marked = torch.zeros_like(means, dtype=torch.bool) if mask is None else mask > 0
        left_out = torch.zeros_like(marked) if ignore is None else ignore > 0
        return means[~marked & ~left_out], means[marked]

    return _histograms(detector, dataset, parts, bins)


def mean_histograms(detector: Detector, dataset: Dataset[Sample], bins: int = 60) -> list[Histogram]:
    """Return histograms of the predicted normal and anomalous means (models 3b and 3c); empty for other models."""
    base = detector.base

    def parts(latent: Latents, masks: Tensor | None) -> tuple[Tensor, Tensor] | None:
        s = latent.statistics
        if not isinstance(base, SemanticGaussian) or s is None or s.normal_shift is None or s.anomaly_shift is None:
            return None
        return (base.normal_mean + s.normal_shift).flatten().cpu(), (
            base.anomaly_mean + s.anomaly_shift
        ).flatten().cpu()

    return _histograms(detector, dataset, parts, bins)


@torch.no_grad()
def _histograms(
    detector: Detector,
    dataset: Dataset[Sample],
    parts: Callable[[Latents, Tensor | None], tuple[Tensor, Tensor] | None],
    bins: int,
) -> list[Histogram]:
    """Return a histogram for each scale of the normal and anomalous values that `parts` takes from its latents."""
    device = next(detector.flows.parameters()).device
    detector.eval()
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for batch in batches(dataset, 8):
        for scale, latent in enumerate(detector.encode(batch.images.to(device))):
            values = parts(latent, batch.anomaly_masks)
            if values is not None:
                found.setdefault(scale, []).append(values)
    return [_histogram(scale, *map(list, zip(*values, strict=True)), bins) for scale, values in found.items()]


def _histogram(scale: int, normal: list[Tensor], anomalous: list[Tensor], bins: int) -> Histogram:
    """Count values between their 0.1 % and 99.9 % quantiles; those beyond are counted in the outer bins."""
    values = [torch.cat(part).numpy().astype(np.float64) for part in (normal, anomalous)]
    low, high = np.quantile(np.concatenate(values), [0.001, 0.999])
    edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
    counts = [np.histogram(v.clip(edges[0], edges[-1]), edges)[0] for v in values]
    return Histogram(scale, edges, counts[0], counts[1])


def _enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def _array(x: Tensor) -> Map:
    return x.detach().float().cpu().numpy()
