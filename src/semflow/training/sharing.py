"""Batch norms and means over a batch whose parts are in several processes, or computed one after the other.

`torch.nn.SyncBatchNorm` runs on GPUs only, and would count the placeholder image of a process without a part.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from semflow.detectors import Detector
from semflow.errors import ConfigError

from .distributed import ALONE, Processes, sum_and_count


class SharedBatchNorm(_BatchNorm):
    """Batch norm with the parameters of `norm` and the statistics of all processes, on any device."""

    def __init__(self, norm: _BatchNorm, processes: Processes) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(norm.__dict__)  # the same parameters and buffers, not copies
        self.processes = processes

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, ...)."""
        if not self.training:
            return super().forward(x)
        given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # counts need digits under autocast
        dim, channel = (0, *range(2, x.dim())), (slice(None), *(None,) * (x.dim() - 2))
        # One message: a row with count, means and variances per process, 0 in the rows of the others.
        variance, mean = torch.var_mean(x, dim, correction=0)
        own = torch.cat([x.new_full((1,), 0.0 if self.processes.idle else x.numel() / x.shape[1]), mean, variance])
        ranks, rank = range(self.processes.count), self.processes.rank
        rows = self.processes.sum(torch.stack([own if k == rank else torch.zeros_like(own) for k in ranks]))
        counts, means, variances = rows.split([1, x.shape[1], x.shape[1]], dim=1)
        count = counts.sum().detach()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        if self.track_running_stats and self.num_batches_tracked is not None:
            self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        centered = x - mean[channel]
        y = centered * torch.rsqrt(variance + self.eps)[channel]
        return (cast(Tensor, y * self.weight[channel] + self.bias[channel]) if self.affine else y).to(given)

    def _check_input_dim(self, input: Tensor) -> None:
        """Allow any number of dimensions."""

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        tracked = cast(Tensor, self.num_batches_tracked)
        tracked += 1
        momentum = 1 / float(tracked) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.lerp_(value.to(running), momentum)


class WholeBatch:
    """Means over a batch that is computed in several chunks: those of the chunks add up to those of the batch.

    Args:
        images: images of the batch, in all processes.
        counted: returns how many locations of this process's images are not ignored at a size (H, W).
        processes: processes with a part of each chunk.
    """

    def __init__(self, images: int, counted: Callable[[tuple[int, int]], Tensor], processes: Processes = ALONE) -> None:
        self.images, self.counted, self.processes = images, counted, processes
        self._counts: dict[tuple[int, int], Tensor] = {}

    @contextmanager
    def chunk(self, detector: Detector, images: int, idle: bool) -> Iterator[None]:
        """Let the detector's loss be the share of a chunk with this number of images here, none if `idle`."""

        def means(maps: Sequence[Tensor], ignore: Tensor | None) -> list[Tensor]:
            own = torch.stack([sum_and_count(x, ignore, idle)[0] for x in maps])
            totals = [self._total(x, images) for x in maps]
            return [x / total for x, total in zip(self.processes.sum(own), totals, strict=True)]

        objective = detector.objective
        detector.objective = replace(objective, means=means)
        try:
            yield
        finally:
            detector.objective = objective

    def _total(self, x: Tensor, images: int) -> Tensor | float:
        """Return the number of values of the whole batch that the values of a chunk are a part of."""
        if x.dim() != 3:
            return x.numel() / images * self.images
        size = (x.shape[1], x.shape[2])
        if size not in self._counts:
            own = self.counted(size)
            whole = own if self.processes.count == 1 else self.processes.total(own)
            self._counts[size] = whole.clamp(min=1)
        return self._counts[size]


@contextmanager
def tilted(detector: Detector, tilt: float | None) -> Iterator[None]:
    """Tilt the loss during the block, in the place of squashing, see `Objective`; None changes nothing."""
    objective = detector.objective
    if tilt is not None:
        detector.objective = replace(objective, tilt=tilt, squash=False)
    try:
        yield
    finally:
        detector.objective = objective


@contextmanager
def shared(detector: Detector, processes: Processes) -> Iterator[None]:
    """Take the means of the objective and of trainable batch norms over all processes during the block."""
    if processes.count == 1:
        yield
        return
    frozen, objective = set(detector.features.modules()), detector.objective
    if objective.boundary:
        raise ConfigError(f"boundary must be 0 for several processes, but got {objective.boundary}; use one")
    norms = [
        (parent, name, child)
        for parent in detector.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm) and child not in frozen
    ]
    detector.objective = replace(objective, means=processes.means, largest=processes.largest)
    for parent, name, norm in norms:
        setattr(parent, name, SharedBatchNorm(norm, processes))
    try:
        yield
    finally:
        detector.objective = objective
        for parent, name, norm in norms:
            norm.train(getattr(parent, name).training)
            setattr(parent, name, norm)
