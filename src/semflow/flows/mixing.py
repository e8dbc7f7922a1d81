"""Flows that mix or scale channels, the same at every location: permutations and a global affine."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError
from semflow.functional import from_locations, to_locations
from semflow.functional.inverse_gamma import narrow
from semflow.nn import Context

from .base import Flow, Result, check_channels

__all__ = ["GlobalAffine", "HardPermutation", "SoftPermutation", "constant_log_det"]


def constant_log_det(x: Tensor, value: Tensor | float) -> Tensor:
    """A log-det that is the same everywhere, as (B, H, W)."""
    return torch.as_tensor(value, dtype=narrow(x[:0], x).dtype, device=x.device).expand(x.shape[0], *x.shape[2:])


class HardPermutation(Flow):
    """A fixed random permutation of the channels: an index, not a product with a matrix. log_det = 0.

    Args:
        channels: C.
        generator: source of the permutation; torch's global one by default.

    Example:
        >>> flow = HardPermutation(8)
        >>> x = torch.randn(1, 8, 2, 2)
        >>> torch.equal(flow.inverse(flow(x)[0]), x)
        True
    """

    index: Tensor
    inverse_index: Tensor

    @checked
    def __init__(self, channels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        at_least(1, channels=channels)
        index = torch.randperm(channels, generator=generator)
        self.register_buffer("index", index)
        self.register_buffer("inverse_index", torch.argsort(index), persistent=False)
        self.register_load_state_dict_post_hook(_restore_inverse_index)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Channel c of z is channel `index[c]` of x."""
        check_channels(x, len(self.index))
        return _permute(x, self.index, self.inverse_index), constant_log_det(x, 0.0)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Every channel back to its place."""
        check_channels(z, len(self.index))
        return _permute(z, self.inverse_index, self.index)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{len(self.index)}"


class _Gather(torch.autograd.Function):
    """Columns in another order: the gradient of a permutation gathers as well, where that of an index scatters."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        return x.index_select(1, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _gather(gradients[0], inverse, index), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _gather(tangents[0], *ctx.saved_tensors)


def _gather(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # which takes no custom forward derivative
        return x.index_select(1, index)
    result: Tensor = _Gather.apply(x, index, inverse)  # type: ignore[no-untyped-call]
    return result


def _permute(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    # Of two dimensions: torch gathers from a matrix ten times as fast as from the map, and it stays channels_last.
    return from_locations(_gather(to_locations(x), index, inverse), (x.shape[2], x.shape[3]))


def _restore_inverse_index(module: nn.Module, _incompatible: object) -> None:
    if isinstance(module, HardPermutation):
        module.inverse_index.copy_(torch.argsort(module.index))


class SoftPermutation(Flow):
    """A fixed random rotation of the channels, Haar-distributed: z = Q x at every location. log_det = 0.

    Args:
        channels: C.
        generator: source of the rotation; torch's global one by default.

    Example:
        >>> z, log_det = SoftPermutation(8)(torch.randn(1, 8, 2, 2))
        >>> log_det.abs().max().item()
        0.0
    """

    matrix: Tensor

    @checked
    def __init__(self, channels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        at_least(1, channels=channels)
        # The QR decomposition of a Gaussian matrix is Haar-distributed once R has a positive diagonal.
        q, r = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))
        q = q * torch.sign(torch.diagonal(r))
        q[:, 0] *= torch.sign(torch.linalg.det(q))
        self.register_buffer("matrix", q.to(torch.get_default_dtype()))

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """The channels of every location, rotated."""
        return self._apply_matrix(self.matrix, x), constant_log_det(x, 0.0)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Rotated back by the transpose."""
        return self._apply_matrix(self.matrix.T, z)

    def _apply_matrix(self, matrix: Tensor, x: Tensor) -> Tensor:
        check_channels(x, len(matrix))
        return F.conv2d(x, matrix[:, :, None, None])

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{len(self.matrix)}"


class GlobalAffine(Flow):
    """A learned scale and shift of each channel: z = s x + b, log_det = sum_c log s.

    s = softplus(g) with g learned, so that scales stay positive and large ones grow no faster than linearly; it starts
    at the identity unless told otherwise. It is the ActNorm of Glow without its data-dependent start.

    Args:
        channels: C.
        start: the scale that training starts from.

    Example:
        >>> x = torch.randn(1, 8, 2, 2)
        >>> z, log_det = GlobalAffine(8)(x)
        >>> torch.allclose(z, x, atol=1e-6), log_det.abs().max().item() < 1e-5
        (True, True)
    """

    # s = 0.1 softplus(g; beta = 0.5): the parametrisation of FrEIA's all-in-one block, whose steps suit Adam's.
    gain, beta = 0.1, 0.5

    @checked
    def __init__(self, channels: int, start: float = 1.0) -> None:
        super().__init__()
        at_least(1, channels=channels)
        if not start > 0:
            raise ConfigError(f"start must be a positive scale, but got {start}")
        wanted = start * self.beta / self.gain  # softplus^-1 of it, without the overflow of its exponential
        raw = (wanted + math.log(-math.expm1(-wanted))) / self.beta
        self.raw_scale = nn.Parameter(torch.full((channels,), raw))
        self.shift = nn.Parameter(torch.zeros(channels))

    def scale(self) -> Tensor:
        """s, (C)."""
        return self.gain * F.softplus(self.raw_scale, beta=self.beta)

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Every channel scaled and shifted."""
        check_channels(x, len(self.shift))
        scale = self.scale()
        z = torch.addcmul(self.shift[:, None, None], x, scale[:, None, None])
        return z, constant_log_det(x, torch.log(narrow(scale, scale)).sum())

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Shifted and scaled back."""
        check_channels(z, len(self.shift))
        return (z - self.shift[:, None, None]) / self.scale()[:, None, None]

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{len(self.shift)}"
