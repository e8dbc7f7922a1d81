"""Anomaly maps and image scores from log-probabilities."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError, ShapeError
from semflow.functional import covered, gaussian_blur, gaussian_kernel, grown

Aggregate = Literal["exp", "sum", "product"]

STANDARD_NORMAL_PEAK = -0.5 * math.log(2 * math.pi)
"""log N(0; 0, 1), the highest log-probability per dimension of a standard normal."""


class Scorer(nn.Module):
    """Anomaly map and image score of log-probabilities l_k per dimension, or other normalities, at K scales.

    With d_k = l_k - c_k, up() the interpolation to the size of the image and weights w_k, by default 1, the map is
    -log p, in nats per dimension, with

    - `exp`      p = 1/K sum_k w_k up(exp d_k): SANFlow (section 3.6), CFLOW-AD, FastFlow, localization of MSFlow
    - `product`  p = exp(sum_k w_k up(d_k)): detection of MSFlow
    - `sum`      log p = 1/K sum_k w_k up(d_k): CS-Flow, DifferNet; minus a distance gives PaDiM's and PatchCore's map

    Published maps of the first two are 1 - p or max - p. They order pixels in the same way, but round to 1 in float32
    beyond 17 nats. The map is near 0 at the most typical training location. With `exp` it is at most 87, where float32
    has no smaller p; the others are unbounded. The exponential limits the effect of outliers of a single scale.

    c_k is the maximum of l_k over the normal training images, set once by `set_maxima` (published codes compute it
    from the test set), so that scores do not depend on the other images.

    Args:
        scales: K.
        top: the image score is -log of the mean p over this fraction of the pixels, those with the highest map (with
            `sum` the mean of the map itself); 0 means the maximum.
        aggregate: aggregate of the map.
        image_aggregate: aggregate of the map that the image score is computed from; by default the same.
        offset: fixed c of all scales instead of the maxima; `STANDARD_NORMAL_PEAK` gives FastFlow's
            exp d_k = exp(-mean_c z_c^2 / 2).
        align_corners: option of bilinear interpolation, true in CFLOW-AD and MSFlow, false in FastFlow.
        interpolation: of up(): bilinear, or nearest as in PatchCore.
        blur: standard deviation in pixels of a Gaussian with which the map is blurred, 4 in PaDiM and PatchCore; 0 for
            none. The borders are reflected.
        weights: w_k of each scale; `set_weights` changes them.
        standardize: with `sum`, c_k and 1 / w_k are the mean and the standard deviation of l_k over the normal training
            images, set by `set_moments`, so that the map counts standard deviations.

    Example:
        >>> scorer = Scorer(scales=2)
        >>> anomaly_map, score = scorer([torch.randn(3, 8, 8), torch.randn(3, 4, 4)], (32, 32))
        >>> anomaly_map.shape, score.shape
        (torch.Size([3, 32, 32]), torch.Size([3]))
    """

    offsets: Tensor
    map_bounds: Tensor
    weights: Tensor
    kernel: Tensor | None

    @checked
    def __init__(
        self,
        scales: int,
        top: float = 0.01,
        aggregate: Aggregate = "exp",
        image_aggregate: Aggregate | None = None,
        offset: float | None = None,
        align_corners: bool = False,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
        blur: float = 0.0,
        weights: Sequence[float] | None = None,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, scales=scales)
        if not 0 <= top <= 1:
            raise ConfigError(f"top must be a fraction of the pixels in [0, 1], but got {top}")
        at_least(0, blur=blur)
        if align_corners and interpolation == "nearest":
            raise ConfigError("align_corners must be False for nearest interpolation, but got True")
        self.image_aggregate: Aggregate = image_aggregate or aggregate
        if standardize and (aggregate, self.image_aggregate) != ("sum", "sum"):
            found = f"{aggregate} and {self.image_aggregate}"
            raise ConfigError(f"standardize must be False unless both aggregates are sum, but got True with {found}")
        if standardize and (offset is not None or weights is not None):
            raise ConfigError("standardize must be False if offset or weights are given, but got True")
        self.top, self.aggregate, self.blur, self.standardize = top, aggregate, blur, standardize
        self.align_corners, self.interpolation = align_corners, interpolation
        self.fixed = offset is not None
        self.register_buffer("offsets", torch.full((scales,), offset or 0.0))
        self.register_buffer("map_bounds", torch.tensor([0.0, 1.0]))
        self.register_buffer("weights", torch.ones(scales))
        self.register_buffer("kernel", gaussian_kernel(blur) if blur else None, persistent=False)
        if weights is not None:
            self.set_weights(weights)

    def forward(
        self, log_probs: Sequence[Tensor], size: tuple[int, int], inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the anomaly map (B, H, W) and the image score (B,) of K maps (B, H_k, W_k).

        Outside a region of interest (B, H, W), the map is -inf, and nothing counts.
        """
        shapes = [tuple(x.shape) for x in log_probs]
        if len(shapes) != len(self.offsets) or any(len(s) != 3 or s[0] != shapes[0][0] or 0 in s[1:] for s in shapes):
            raise ShapeError(f"log_probs must be {len(self.offsets)} maps (B, H, W) of one batch, but got {shapes}")
        if min(size) < 1:
            raise ShapeError(f"size must be (H, W) of at least one pixel, but got {tuple(size)}")
        anomaly_map = self.map(log_probs, size, self.aggregate, inside)
        if self.image_aggregate == self.aggregate:
            return anomaly_map, self.image_score(anomaly_map, inside)
        return anomaly_map, self.image_score(self.map(log_probs, size, self.image_aggregate, inside), inside)

    def map(
        self, log_probs: Sequence[Tensor], size: tuple[int, int], aggregate: Aggregate, inside: Tensor | None = None
    ) -> Tensor:
        """Compute the map (B, H, W) of one aggregate."""
        total = torch.zeros((), device=log_probs[0].device)
        for log_prob, offset, weight in zip(log_probs, self.offsets, self.weights, strict=True):
            typical = log_prob.float() - offset
            if inside is not None:  # interpolation and blur must not mix in what is outside
                cells = (log_prob.shape[1], log_prob.shape[2])
                typical = grown(typical, covered(inside, cells), self._reach(cells, size))
            if aggregate == "exp":
                # A location more likely than all training locations must not overflow.
                typical = torch.exp(typical.clamp(max=1.0))
            total = total + weight * self._resized(typical, size)
        if aggregate == "product":
            anomaly_map = -total
        elif aggregate == "sum":
            anomaly_map = -total / len(log_probs)
        else:
            mean = total / len(log_probs)
            anomaly_map = -torch.log(mean.clamp(min=torch.finfo(mean.dtype).tiny))
        anomaly_map = anomaly_map if self.kernel is None else gaussian_blur(anomaly_map, self.kernel)
        return anomaly_map if inside is None else torch.where(inside, anomaly_map, -torch.inf)

    def _reach(self, cells: tuple[int, int], size: tuple[int, int]) -> int:
        """Return how many locations outside a region a pixel inside may depend on."""
        radius = 0 if self.kernel is None else len(self.kernel) // 2
        return 2 + max(-(-radius * count // pixels) for count, pixels in zip(cells, size, strict=True))

    def image_score(self, image_map: Tensor, inside: Tensor | None = None) -> Tensor:
        """Compute the score (B,) over the top fraction of the pixels of a map (B, H, W) of `image_aggregate`."""
        pixels = image_map.flatten(1)
        highest = pixels.topk(max(1, round(self.top * pixels.shape[1])), dim=1).values
        if inside is not None:
            return self._score_inside(highest, inside.flatten(1).sum(1))
        if self.image_aggregate == "sum":
            return highest.mean(1)
        # -log mean exp(-m) relative to the lowest: log n - logsumexp would round at the size of log n.
        lowest = highest[:, -1:]
        return lowest[:, 0] - torch.log1p(torch.expm1(lowest - highest).mean(1))

    def _score_inside(self, highest: Tensor, pixels: Tensor) -> Tensor:
        """Compute the score from the highest values (B, K) of maps with a number of pixels inside (B,)."""
        count = (self.top * pixels).round().clamp(min=1, max=highest.shape[1]).to(torch.int64)[:, None]
        used = torch.arange(highest.shape[1], device=highest.device) < count
        if self.image_aggregate == "sum":
            return torch.where(used, highest, 0.0).sum(1) / count[:, 0]
        lowest = highest.gather(1, count - 1)
        shares = torch.expm1(lowest - torch.where(used, highest, lowest)).sum(1) / count[:, 0]
        return lowest[:, 0] - torch.log1p(shares)

    @property
    def ceilings(self) -> tuple[float, float]:
        """Highest image score and highest value of a map; 87.3 with `exp`, where float32 has no smaller p."""
        highest = -math.log(torch.finfo(torch.float32).tiny)
        image, pixel = (highest if x == "exp" else math.inf for x in (self.image_aggregate, self.aggregate))
        return image, pixel

    def set_maxima(self, maxima: Sequence[float]) -> None:
        """Set c_k to the maxima of l_k over normal training images, one per scale, unless it is fixed."""
        if not self.fixed:
            self.offsets.copy_(torch.tensor(list(maxima)))

    def set_moments(self, means: Sequence[float], deviations: Sequence[float]) -> None:
        """Set c_k and 1 / w_k to mean and standard deviation of l_k over normal images; scales without any get 0."""
        self.offsets.copy_(torch.tensor(list(means)))
        self.set_weights([1 / d if d > 0 else 0.0 for d in deviations] if any(deviations) else [1.0] * len(deviations))

    def set_weights(self, weights: Sequence[float]) -> None:
        """Set the weight w_k of each scale, at least 0 and not all 0."""
        values = torch.tensor(list(weights), dtype=torch.float64)
        if len(values) != len(self.offsets) or not (values >= 0).all() or not 0 < values.sum() < math.inf:
            raise ConfigError(
                f"weights must be {len(self.offsets)} numbers of at least 0, not all 0, but got {list(weights)}"
            )
        self.weights.copy_(values)

    def _resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Interpolate a map (B, h, w) to (B, H, W)."""
        align_corners = self.align_corners if self.interpolation == "bilinear" else None
        return F.interpolate(x[:, None], size=size, mode=self.interpolation, align_corners=align_corners).squeeze(1)

    def extra_repr(self) -> str:
        """Show the options."""
        blurred = f", blur={self.blur}" if self.blur else ""
        return f"{len(self.offsets)}, top={self.top}, aggregate={self.aggregate}, image={self.image_aggregate}{blurred}"
