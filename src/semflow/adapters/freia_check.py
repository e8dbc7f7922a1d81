"""The last word on a conversion: both sides are run on the same noise."""

from typing import Any

import torch
from torch import Tensor

from semflow.errors import ConfigError
from semflow.flows import FlowSequence

__all__ = ["check_same"]


def check_same(block: Any, flow: FlowSequence, where: str) -> None:
    """Refuse a block that looks like FrEIA's but computes something else: many projects carry a changed copy of it.

    Raises:
        ConfigError: the block cannot be run, or z or the log-det differ by more than rounding.
    """
    like = block.global_scale
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(2, *shape, generator=generator).to(like)

    x, conditions = draw(block.dims_in[0]), [draw(shape) for shape in block.dims_c]
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        try:
            (z,), log_det = block([x], c=conditions)
        except Exception as error:
            raise ConfigError(
                f"{where}: must run on {tuple(x.shape)} of {x.dtype}, so that the result can be compared, "
                f"but it raised {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        context = _as_map(torch.cat(conditions, dim=1)) if conditions else None
        our_z, our_log_det = flow(_as_map(x), context)
    # float32 leaves room for TF32 convolutions; what is wrong differs by far more.
    allowed = 1e-3 if like.dtype in (torch.float32, torch.float64) else 5e-2
    off = max(_deviation(our_z, _as_map(z)), _deviation(our_log_det.reshape(2, -1).sum(1), log_det))
    if not off <= allowed:
        raise ConfigError(
            f"{where}: must compute what FrEIA's AllInOneBlock does, but {type(block).__module__}."
            f"{type(block).__qualname__} gives other results (by {off:.2g}): a changed copy cannot be converted"
        )


def _as_map(x: Tensor) -> Tensor:
    return x[:, :, None, None] if x.dim() == 2 else x


def _deviation(came: Tensor, right: Tensor) -> float:
    """The largest difference relative to the largest right number, or to 1."""
    difference = (came.double() - right.double()).abs().max() / right.double().abs().max().clamp(min=1.0)
    return difference.item()
