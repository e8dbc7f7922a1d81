"""The matrix products of a fused block: oneDNN's where torch has them, a tenth faster than MKL's on some processors.

What `linear` calls is MKL or whatever torch was built with; oneDNN's float32 product has no public name yet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["packed", "product"]

_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (N, in) by weight (out, in), which may be `packed`, plus bias (out)."""
    if weight.is_mkldnn or _chosen(weight):
        result: Tensor = _onednn(x, weight, bias, "none", [], "")  # type: ignore[misc]
        return result
    return F.linear(x, weight, bias)


def packed(weight: Tensor, rows: int) -> Tensor:
    """The weight in the order that products with `rows` rows read it in, for several of them; itself without oneDNN."""
    if not _chosen(weight):
        return weight
    result: Tensor = _pack(weight, rows)  # type: ignore[misc]
    return result


def _chosen(weight: Tensor) -> bool:
    return bool(
        None not in (_onednn, _pack)
        and weight.dtype == torch.float32
        # Of other strides, oneDNN takes its reference implementation, a thousand times slower.
        and (weight.is_contiguous() or weight.T.is_contiguous())
        # MKL is slower than oneDNN on AMD processors with AVX-512 (by a tenth on Zen 4), but faster on those without.
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )
