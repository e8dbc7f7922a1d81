"""A base distribution around stored latents of normal images."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from semflow._validation import at_least, checked, counted, positive
from semflow.errors import CheckpointError, ConfigError, ShapeError
from semflow.functional import kernel_log_prob, likeliest_bandwidth, nearest
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Statistics

from .fitted import FittedBase
from .reweighting import reweighted_distance
from .semantic import Base
from .stored import StoredLatents

FLOOR = 1e-2
ROWS = 256  # stored vectors at which distances and the bandwidth are fitted
PAIRS = 2**23  # of these with stored vectors, so that fitting takes seconds: fewer rows for large memories


class Memory(FittedBase):
    """Distribution around M stored latents z_m of normal images, the same at every location.

    With d the distance of z to the k-th nearest stored vector and V the volume of the unit ball in C dimensions, the
    forms are

    - `nearest`: the nearest-neighbor density estimate, log p(z) = log k - log M - log V - C log d
    - `kernel`: the kernel density estimate, log p(z) = log 1/M sum_m N(z; z_m, h^2 I), whose bandwidth h maximizes the
      likelihood of each stored vector given those of the other images
    - `distance`: no density; normality is -d, as in PatchCore

    With statistics of the locations, the kernel's variance at a location is the predicted one, which is SANFlow with
    the stored latents as means; the other forms ignore statistics.

    In `nearest`, d is at least 0.01 times the median distance between stored vectors of different images, so that
    log p is finite at stored vectors; h is at least that too. Distances to one stored vector alone have no scale: both
    are then relative to 1.

    Args:
        form: `nearest`, `kernel` or `distance`.
        neighbors: k; the kernel uses all vectors.
        size: Number of stored vectors, or their share of all; None stores all. They are chosen by a k-center coreset,
            see `semflow.functional.k_center`.
        space: Choose the vectors by distances between `latents`, or between the `features` mapped to them.
        projection: Dimensions of a random projection in which they are chosen; None projects nothing.
        seed: Seed of this choice and of the stored vectors at which the bandwidth is fitted.
        variance_form: How an inverse-gamma variance enters, `exact`, `marginal` or `mode`; see
            `semflow.functional.normal_log_prob`.
        chunk_bytes: Approximate limit of temporary memory; in an exported graph, for each image.
        limit_bytes: Bytes of latents collected until a coreset replaces them; None shares 448 MiB between scales.
        image_neighbors: Neighbors in the score of whole images, see `reweight`; None leaves it to the anomaly map.
        anomalies: Memory of anomalous latents, which makes `log_odds` available.
        prior: Base under which the flow is trained, see `FittedBase`.

    Attributes:
        radius: Covering radius of the coreset, at most: the distance to the nearest stored vector of any other.

    Example:
        >>> latents = torch.randn(4, 8, 6, 6)
        >>> base = Memory("distance", size=0.1)
        >>> accumulator = base.accumulator()
        >>> accumulator.update(latents)
        >>> base.fit(accumulator)
        >>> base.vectors.shape, base.normality(latents).shape
        (torch.Size([14, 8]), torch.Size([4, 6, 6]))
    """

    leaves_out = True
    vectors: Tensor
    images: Tensor
    floor: Tensor
    bandwidth: Tensor
    radius: Tensor

    @checked
    def __init__(
        self,
        form: Literal["nearest", "kernel", "distance"] = "nearest",
        *,
        neighbors: int = 1,
        size: int | float | None = None,
        space: Literal["latents", "features"] = "latents",
        projection: int | None = None,
        seed: int = 0,
        variance_form: Literal["exact", "marginal", "mode"] = "exact",
        chunk_bytes: int = 2**26,
        limit_bytes: int | None = None,
        image_neighbors: int | None = None,
        anomalies: "Memory | None" = None,
        prior: Base | None = None,
    ) -> None:
        super().__init__(prior)
        at_least(1, neighbors=neighbors, chunk_bytes=chunk_bytes)
        at_least(1, image_neighbors=1 if image_neighbors is None else image_neighbors)
        if size is not None:
            positive(size=size)
            if isinstance(size, float) and size > 1:
                raise ConfigError(f"size must be at most 1 as a share, but got {size}; give a whole number of vectors")
        self.form, self.neighbors, self.size, self.space = form, neighbors, size, space
        self.projection, self.seed, self.chunk_bytes, self.limit_bytes = projection, seed, chunk_bytes, limit_bytes
        self.variance_form, self.anomalies, self.image_neighbors = variance_form, anomalies, image_neighbors
        self.is_density, self.uses_features = form != "distance", space == "features"
        self.register_buffer("vectors", torch.zeros(0, 0))
        self.register_buffer("images", torch.zeros(0, dtype=torch.int64))
        for name in ("floor", "bandwidth", "radius"):
            self.register_buffer(name, torch.ones(()))

    @property
    def whole(self) -> bool:
        """True if all vectors are stored: without the rows of an image, a coreset has gaps that another would not."""
        return self.size is None or (len(self.vectors) > 0 and self.radius.item() == 0)

    def accumulator(self) -> StoredLatents:
        """Return an empty collection of latents."""
        gpu = self.vectors.device if self.vectors.is_cuda else None
        return StoredLatents(self.size, self.space, self.projection, self.seed, self.limit_bytes, gpu)

    @torch.no_grad()
    def fit(self, accumulator: StoredLatents) -> None:
        """Store the latents that an accumulator has collected, or a coreset of them."""
        vectors, images, radius = accumulator.select()
        self.store(vectors, images)
        self.radius.fill_(radius)

    @torch.no_grad()
    def store(self, vectors: Tensor, images: Tensor | None = None) -> None:
        """Store vectors (M, C), with the index (M,) of the image of each or, by default, each of its own image."""
        images = torch.arange(len(vectors)) if images is None else images
        if vectors.dim() != 2 or not vectors.is_floating_point() or images.shape != vectors.shape[:1]:
            found = f"{tuple(vectors.shape)} of {vectors.dtype} and {tuple(images.shape)}"
            raise ShapeError(f"vectors and images must be floats (M, C) and integers (M,), but got {found}")
        if len(vectors) < self.neighbors:
            raise ShapeError(f"vectors must be at least {self.neighbors}, one per neighbor, but got {len(vectors)}")
        device = self.vectors.device
        self.vectors = narrow(vectors.detach()).to(device, copy=True).contiguous()
        self.images = images.to(device, torch.int64, copy=True)
        typical, bandwidth = self._scales()
        zero = torch.zeros((), dtype=self.vectors.dtype, device=device)
        self.floor, self.bandwidth, self.radius = zero + FLOOR * typical, zero + bandwidth, zero

    def _scales(self) -> tuple[float, float]:
        """Measure the typical distance to a vector of another image and, for a kernel, the bandwidth."""
        # Of one image only, the vectors count as each other's neighbors.
        one = bool((self.images == self.images[0]).all())
        ids = torch.arange(len(self.images), device=self.images.device) if one else self.images
        if len(ids) == 1:
            return 1.0, 1.0
        count = min(ROWS, max(32, PAIRS // len(ids)))
        rows = torch.randperm(len(ids), generator=torch.Generator().manual_seed(self.seed))[:count].to(ids.device)
        distances, _ = nearest(
            self.vectors[rows], self.vectors, exclude=ids[rows], memory_ids=ids, chunk_bytes=self.chunk_bytes
        )
        # Duplicates may be the majority, and even all.
        scale = (distances.median() if distances.median() > 0 else distances.mean()).item() or 1.0
        if self.form != "kernel":
            return scale, 1.0
        shortest = FLOOR * scale
        return scale, likeliest_bandwidth(self.vectors, ids, rows, shortest, chunk_bytes=self.chunk_bytes)

    def log_prob(
        self,
        z: Tensor,
        statistics: Statistics | None = None,
        anomaly_mask: Tensor | None = None,
        leave_out: Tensor | None = None,
    ) -> Tensor:
        """Compute log p(z) in nats at every location, (B, H, W).

        Args:
            z: Latents (B, C, H, W).
            statistics: Statistics of the locations, or None.
            anomaly_mask: Mask (B, H, W), positive where the density is that of `anomalies`; ignored without them.
            leave_out: (B,) int64, see `normality`.
        """
        if self.form == "distance":
            raise ConfigError("form must be nearest or kernel for log_prob, but got distance, which has no density")
        self._check(z, leave_out)
        if self.form == "kernel":
            log_prob = self._kernel(z, statistics, leave_out)
        else:
            channels = z.shape[1]
            volume = channels / 2 * math.log(math.pi) - math.lgamma(channels / 2 + 1)
            distance = self._distance(z, self.neighbors, leave_out).clamp(min=self.floor)
            log_prob = math.log(self.neighbors / len(self.vectors)) - volume - channels * torch.log(distance)
            if leave_out is not None:
                log_prob = log_prob - torch.log(self._left(leave_out).to(log_prob) / len(self.vectors))[:, None, None]
        if self.anomalies is None or anomaly_mask is None:
            return log_prob
        return torch.where(anomaly_mask > 0, self.anomalies.log_prob(z, statistics), log_prob)

    def log_odds(self, z: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Compute log p(z | normal) - log p(z | anomalous) at every location, (B, H, W); needs `anomalies`."""
        if self.anomalies is None:
            raise ConfigError("anomalies must be a memory of anomalous latents for log_odds, but got None")
        return self.log_prob(z, statistics) - self.anomalies.log_prob(z, statistics)

    def normality(self, z: Tensor, statistics: Statistics | None = None, leave_out: Tensor | None = None) -> Tensor:
        """Compute log p(z) / C, or -d for `distance`, at every location, (B, H, W).

        Args:
            z: Latents (B, C, H, W).
            statistics: Statistics of the locations, or None.
            leave_out: (B,) int64, the index of each image among those that the base was fitted to, whose vectors are
                then ignored; None ignores none.
        """
        if self.is_density:
            return self.log_prob(z, statistics, leave_out=leave_out) / z.shape[1]
        self._check(z, leave_out)
        return -self._distance(z, self.neighbors, leave_out)

    def reweight(self, z: Tensor, neighbors: int = 9, leave_out: Tensor | None = None) -> Tensor:
        """Compute PatchCore's image score (B,), its largest distance to the nearest stored vector with a weight.

        With z the location of the largest distance, m its nearest stored vector and N the nearest `neighbors` stored
        vectors of m, m included, the score is (1 - exp |z - m| / sum_{n in N} exp |z - n|) |z - m|, which is lower if
        m itself is far from other stored vectors (Roth et al., CVPR 2022, Eq. 7). For one neighbor it is |z - m|.
        """
        self._check(z, leave_out)
        return self._reweighted(z, self._distance(z, 1, leave_out), neighbors, leave_out)

    def image_score(self, z: Tensor, normality: Tensor, leave_out: Tensor | None = None) -> Tensor | None:
        """Compute `reweight` at the location of the lowest normality, (B,), or None without `image_neighbors`."""
        k = self.image_neighbors
        return None if k is None else self._reweighted(z, -normality, k, leave_out)

    def _reweighted(self, z: Tensor, distance: Tensor, neighbors: int, leave_out: Tensor | None = None) -> Tensor:
        where = distance.flatten(1).argmax(1)[:, None, None].expand(-1, 1, z.shape[1])
        farthest = _rows(narrow(z, self.vectors)).gather(1, where)[:, 0]
        return reweighted_distance(
            farthest, self.vectors, neighbors, exclude=leave_out, memory_ids=self.images, chunk_bytes=self.chunk_bytes
        )

    def _check(self, z: Tensor, leave_out: Tensor | None) -> None:
        if not len(self.vectors):
            raise ConfigError("memory must be fitted before use, but got no stored vectors")
        if z.dim() != 4 or z.shape[1] != self.vectors.shape[1]:
            raise ShapeError(f"z must be (B, {self.vectors.shape[1]}, H, W), but got {tuple(z.shape)}")
        if leave_out is None:
            return
        if leave_out.shape != z.shape[:1]:
            raise ShapeError(f"leave_out must be (B,) = ({len(z)},), but got {tuple(leave_out.shape)}")
        if (few := self._left(leave_out) < self.neighbors).any():
            least = f"at least {counted(self.neighbors, 'vector')} of other images"
            raise ConfigError(f"leave_out must leave {least}, but got image {leave_out[few][0]}; store more vectors")

    def _left(self, leave_out: Tensor) -> Tensor:
        """Count the vectors of other images, (B,)."""
        return (self.images != leave_out[:, None]).sum(1)

    def _distance(self, z: Tensor, k: int, leave_out: Tensor | None) -> Tensor:
        """Compute the distance to the k-th nearest stored vector, with gradients, (B, H, W)."""
        flat = _rows(narrow(z, self.vectors)).flatten(0, 1)
        exclude = None if leave_out is None else leave_out[:, None, None].expand(z[:, 0].shape).flatten()
        _, rows = nearest(
            flat.detach(), self.vectors, k, exclude=exclude, memory_ids=self.images, chunk_bytes=self.chunk_bytes
        )
        distance: Tensor = torch.linalg.vector_norm(flat - self.vectors[rows[:, k - 1]], dim=1)
        return distance.view(z[:, 0].shape)

    def _kernel(self, z: Tensor, statistics: Statistics | None, leave_out: Tensor | None) -> Tensor:
        z, alpha, beta = narrow(z, self.vectors), None, self.bandwidth.square()
        if statistics is not None:
            beta = statistics.beta[:, 0].flatten(1)
            alpha = None if statistics.alpha is None else statistics.alpha[:, 0].flatten(1)
            z = z if statistics.normal_shift is None else z - narrow(statistics.normal_shift)
        log_prob = kernel_log_prob(
            _rows(z),
            self.vectors,
            beta,
            alpha,
            self.variance_form,
            exclude=None if leave_out is None else leave_out[:, None],
            memory_ids=self.images,
            chunk_bytes=self.chunk_bytes,
        )
        return log_prob.view(z[:, 0].shape)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless `store` could have made the buffers of a saved state."""
        vectors, images = state["vectors"], state["images"]
        if vectors.dim() != 2 or images.shape != vectors.shape[:1] or not vectors.isfinite().all():
            raise CheckpointError(
                f"vectors must be finite (M, C) with images (M,), but got {tuple(vectors.shape)} and "
                f"{tuple(images.shape)}; fit the model again"
            )

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        size = "" if self.size is None else f", size={self.size}, space={self.space}"
        return f"{self.form}, neighbors={self.neighbors}{size}, vectors={tuple(self.vectors.shape)}"


def _rows(z: Tensor) -> Tensor:
    """Return the vectors (B, H W, C) of the locations of maps (B, C, H, W)."""
    return z.flatten(2).transpose(1, 2)
