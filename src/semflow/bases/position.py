"""A normal distribution with its own mean and covariance at every location (PaDiM)."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from semflow._devices import is_exported
from semflow._validation import checked, positive
from semflow.errors import CheckpointError, DataError, ShapeError
from semflow.functional.inverse_gamma import narrow, wide
from semflow.functional.neighbors import without_autocast
from semflow.nn import Statistics

from .fitted import FittedBase
from .position_moments import CHUNK, PositionMoments
from .semantic import Base


def _part(matrices: Tensor) -> int:
    """Return the number of locations that are computed at once, for matrices (H, W, C, C)."""
    return max(1, CHUNK // matrices.shape[-1] ** 2)


class PositionGaussian(FittedBase):
    """Normal distribution with the mean and the covariance of each location over the normal images (PaDiM, Eq. 1).

    log p(z) = -(C log 2 pi + log det S + d^2) / 2 with d^2 = (z - m)^T S^-1 (z - m) and S = the sample covariance
    (divisor N - 1) + `shrinkage` I. Latents must have the grid (H, W) that the base was fitted on. It keeps
    H W C (C + 1) numbers.

    Args:
        form: `density`, or `distance` for PaDiM's map, whose normality is minus the Mahalanobis distance d (Eq. 2).
        shrinkage: 0.01 in the paper; anomalib's PaDiM has 0.01001.
        prior: See `FittedBase`.

    Example:
        >>> base = PositionGaussian("distance")
        >>> moments = base.accumulator()
        >>> moments.update(torch.randn(100, 2, 4, 4))
        >>> base.fit(moments)
        >>> base.normality(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 4, 4])
    """

    by_location: ClassVar[bool] = True
    leaves_out = True
    least_images: ClassVar[int] = 3  # a covariance without one of them needs two
    takes_tiles: ClassVar[bool] = False

    mean: Tensor
    whitening: Tensor
    count: Tensor

    @checked
    def __init__(
        self, form: Literal["density", "distance"] = "density", shrinkage: float = 0.01, prior: Base | None = None
    ) -> None:
        super().__init__(prior)
        positive(shrinkage=shrinkage)
        self.form, self.shrinkage, self.is_density = form, shrinkage, form == "density"
        self.register_buffer("mean", torch.zeros(0, 0, 0))
        self.register_buffer("whitening", torch.zeros(0, 0, 0, 0))  # the inverse of the Cholesky factor of S
        self.register_buffer("count", torch.tensor(0))
        self._without_one: Tensor | None = None  # the whitening that leaves one image out

    def accumulator(self) -> PositionMoments:
        """Return empty moments."""
        return PositionMoments()

    @torch.no_grad()
    def fit(self, accumulator: PositionMoments) -> None:
        """Compute means and covariances; at least two images are needed."""
        mean, squares = accumulator.result()
        if accumulator.count < 2:
            raise ShapeError("z must hold at least two images for a covariance, but got one")
        if not mean.isfinite().all():
            raise DataError("z must be finite, but got inf or NaN")
        parts = squares.flatten(0, 1).split(_part(squares))
        whitening = self._whitened(parts, 1 / (accumulator.count - 1), self.whitening.new_empty(squares.shape))
        self.mean, self.whitening = mean.to(self.mean), whitening
        self.count.fill_(accumulator.count)
        self._without_one = None

    def log_prob(self, z: Tensor, statistics: Statistics | None = None, anomaly_mask: Tensor | None = None) -> Tensor:
        """Compute log N(z; m, S) at every location, (B, H, W); statistics and masks are ignored."""
        whitened = self._deviations(z, self.whitening)
        return self._log_normal(whitened.square().sum(2), self._log_scale(self.whitening))

    def normality(self, z: Tensor, statistics: Statistics | None = None, leave_out: Tensor | None = None) -> Tensor:
        """Compute log p(z) / C, or minus the Mahalanobis distance, (B, H, W).

        Args:
            z: Latents (B, C, H, W).
            statistics: Ignored.
            leave_out: If given, z must be latents that the base was fitted to, and each image is compared with the
                distribution of all other images.
        """
        if leave_out is None:
            if self._without_one is not None:  # as large as the base itself, and only needed in a row
                self._without_one = None
            square, log_scale = self._deviations(z, self.whitening).square().sum(2), self._log_scale(self.whitening)
        else:
            square, log_scale = (x.to(self.mean) for x in self._leaving_out(z))
        if self.form == "distance":
            return -square.permute(2, 0, 1).sqrt()
        return self._log_normal(square, log_scale) / z.shape[1]

    def _deviations(self, z: Tensor, whitening: Tensor) -> Tensor:
        """Return W (z - m) with W^T W = S^-1, (H, W, C, B)."""
        grid, channels = self.mean.shape[:2], self.mean.shape[2]
        if not channels:
            raise ShapeError("mean must be fitted before use, but got no images; call fit first")
        if z.dim() != 4 or z.shape[1:] != (channels, *grid):
            raise ShapeError(
                f"z must be (B, {channels}, {grid[0]}, {grid[1]}), on the grid of {grid[0]} x {grid[1]} locations that "
                f"the base was fitted on, but got {tuple(z.shape)}"
            )
        # In float32, whatever autocast says: the products cancel.
        with without_autocast(z):
            if is_exported():  # runtimes prepare constant factors on the right
                deviations = (narrow(z).permute(2, 3, 0, 1) - self.mean[:, :, None]).flatten(0, 1)
                factor, ends = whitening.flatten(0, 1).mT, sorted({0, channels // 2, channels})
                # It is triangular, and reading it takes most of the time: a quarter that is 0 is left out.
                parts = [torch.bmm(deviations[:, :, :end], factor[:, :end, start:end]) for start, end in pairwise(ends)]
                found: Tensor = torch.cat(parts, 2).mT.unflatten(0, grid)
                return found
            return whitening @ (narrow(z).permute(2, 3, 1, 0) - self.mean[..., None])

    def _log_normal(self, square: Tensor, log_scale: Tensor) -> Tensor:
        constant = self.mean.shape[2] * math.log(2 * math.pi)
        return log_scale.permute(2, 0, 1) - 0.5 * (constant + square.permute(2, 0, 1))

    @staticmethod
    def _log_scale(whitening: Tensor) -> Tensor:
        """Return -log det S / 2, (H, W, 1)."""
        return whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)

    def _leaving_out(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return d^2 and -log det S / 2 of the distributions without each image, (H, W, B).

        With u = z - m and A = (N - 1) / (N - 2) (S - s I) + s I for shrinkage s, the covariance without z is the
        downdate A - c u u^T with c = N / ((N - 1) (N - 2)), and the mean without z is m - u / (N - 1).
        """
        count = int(self.count)
        if count < 3:
            raise ShapeError(f"the base must be fitted to at least 3 images to leave one out, but got {count}")
        whitening = self._without_one  # another thread may drop it meanwhile
        if whitening is None:
            self._without_one = whitening = self._rescaled(count)
        square = self._deviations(wide(z), whitening).square().sum(2)
        left = 1 - square * (count / ((count - 1) * (count - 2)))
        # Positive in exact arithmetic, since a covariance with shrinkage is what is left.
        left = left.clamp(min=torch.finfo(left.dtype).eps)
        scaled = square * (count / (count - 1)) ** 2 / left
        return scaled, self._log_scale(whitening) - 0.5 * left.log()

    @torch.no_grad()
    def _rescaled(self, count: int) -> Tensor:
        """Return the whitening of A, see `_leaving_out`."""

        def squares() -> Iterator[Tensor]:
            for part in self.whitening.flatten(0, 1).split(_part(self.whitening)):
                whitening = wide(part)
                identity = torch.eye(part.shape[1], dtype=whitening.dtype, device=part.device)
                factor = torch.linalg.solve_triangular(whitening, identity, upper=False)
                products = factor @ factor.mT
                products.diagonal(dim1=1, dim2=2).sub_(self.shrinkage)
                yield products

        rescaled = wide(self.mean).new_empty(self.whitening.shape)
        return self._whitened(squares(), (count - 1) / (count - 2), rescaled)

    def _whitened(self, squares: Iterable[Tensor], scale: float, whitening: Tensor) -> Tensor:
        """Fill in the inverse of the Cholesky factor of `scale * squares + shrinkage I` at every location.

        The squares come in parts, (N, C, C), of whose matrices only one is held at a time.
        """
        filled, start = whitening.flatten(0, 1), 0
        for part in squares:
            identity = torch.eye(part.shape[1], dtype=part.dtype, device=part.device)
            factor = torch.linalg.cholesky(part * scale + self.shrinkage * identity)
            filled[start : start + len(part)] = torch.linalg.solve_triangular(factor, identity, upper=False)
            start += len(part)
        return whitening

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless the whitening of a saved state fits to its mean."""
        self._without_one = None
        mean, whitening = (tuple(state[name].shape) for name in ("mean", "whitening"))
        if whitening != (*mean, *mean[-1:]):
            raise CheckpointError(f"whitening must be (H, W, C, C) for a mean {mean}, but got {whitening}")

    def extra_repr(self) -> str:
        """Return the arguments and the fitted shape for `repr`."""
        return f"form={self.form}, shrinkage={self.shrinkage}, mean={tuple(self.mean.shape)}"
