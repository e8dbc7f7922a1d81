"""A detector whose batch lies with several processes: means and batch norms over all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from semflow.detectors import Detector

from .distributed import Processes

__all__ = ["SharedBatchNorm", "shared"]


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation by the statistics of all processes' parts of a batch, on any device and of any dimension.

    Args:
        norm: the layer whose parameters and buffers it works with.
        processes: that hold a part each; what an idle one has does not count.
    """

    def __init__(self, norm: _BatchNorm, processes: Processes) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(norm.__dict__)  # the parameters and buffers themselves, not copies
        self.processes = processes

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...), normalised; in eval mode as the layer itself does it."""
        if not self.training:
            return super().forward(x)
        dim, channel = (0, *range(2, x.dim())), (slice(None), *(None,) * (x.dim() - 2))
        # One message: each process's count, means and variances stand in a row of their own, 0 in all others'.
        variance, mean = torch.var_mean(x, dim, correction=0)
        own = [x.new_tensor([0.0 if self.processes.idle else x.numel() / x.shape[1]]), mean, variance]
        rows = x.new_zeros(self.processes.count, 2 * x.shape[1] + 1)
        rows = self.processes.sum(rows.index_put((torch.tensor(self.processes.rank),), torch.cat(own)))
        counts, means, variances = rows.split([1, x.shape[1], x.shape[1]], dim=1)
        count = counts.sum().detach()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        if self.track_running_stats and self.num_batches_tracked is not None:
            self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        centred = x - mean[channel]
        y = centred * torch.rsqrt(variance + self.eps)[channel]
        return cast(Tensor, y * self.weight[channel] + self.bias[channel]) if self.affine else y

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions is right."""

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        tracked = cast(Tensor, self.num_batches_tracked)
        tracked += 1
        momentum = 1 / float(tracked) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.lerp_(value.to(running), momentum)


@contextmanager
def shared(detector: Detector, processes: Processes) -> Iterator[None]:
    """Let a detector's objective and batch norms take means over all processes while the block runs.

    The backbone is left alone: it is frozen, and its norms are constants.
    """
    if processes.count == 1:
        yield
        return
    own, objective = list(_norms(detector)), detector.objective
    detector.objective = replace(objective, means=processes.means)
    for parent, name, norm in own:
        setattr(parent, name, SharedBatchNorm(norm, processes))
    try:
        yield
    finally:
        detector.objective = objective
        for parent, name, norm in own:
            norm.train(getattr(parent, name).training)
            setattr(parent, name, norm)


def _norms(detector: Detector) -> Iterator[tuple[nn.Module, str, _BatchNorm]]:
    """Every batch norm that is trained, with the module that holds it and its name there."""
    frozen = set(detector.features.modules())
    for parent in detector.modules():
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and child not in frozen:
                yield parent, name, child
