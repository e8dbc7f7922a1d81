"""Flows that are the same at every location: identity, permutations of the channels and a global affine."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow._defaults import blank
from semflow._devices import is_exported
from semflow._validation import at_least, checked, positive
from semflow.functional import from_locations, to_locations
from semflow.functional.inverse_gamma import filled, narrow
from semflow.nn import Context

from .base import Flow, Result, check_channels


def constant_log_det(x: Tensor, value: Tensor | float) -> Tensor:
    """Expand a log-det that is the same at every location to (B, H, W)."""
    return filled(value, narrow(x[:0], x)).expand(x.shape[0], *x.shape[2:])


class Identity(Flow):
    """The flow z = x with log_det = 0, for a base on the features themselves, such as a memory.

    Args:
        channels: C, or 0 for any number of channels.

    Example:
        >>> x = torch.randn(1, 8, 2, 2)
        >>> z, log_det = Identity()(x)
        >>> z is x, log_det.tolist()
        (True, [[[0.0, 0.0], [0.0, 0.0]]])
    """

    @checked
    def __init__(self, channels: int = 0) -> None:
        super().__init__()
        at_least(0, channels=channels)
        self.channels = channels

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Return the features and zeros."""
        if self.channels:
            check_channels(x, self.channels)
        return x, constant_log_det(x, 0.0)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the latents."""
        if self.channels:
            check_channels(z, self.channels)
        return z


class HardPermutation(Flow):
    """Fixed random permutation of the channels, by an index instead of a matrix; log_det = 0.

    Args:
        channels: C.
        generator: Random number generator; by default torch's global one.

    Example:
        >>> flow, x = HardPermutation(8), torch.randn(1, 8, 2, 2)
        >>> torch.equal(flow.inverse(flow(x)[0]), x)
        True
    """

    index: Tensor
    inverse_index: Tensor

    @checked
    def __init__(self, channels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        at_least(1, channels=channels)
        self.channels = channels
        index = torch.randperm(channels, generator=generator)
        self.register_buffer("index", index)
        self.register_buffer("inverse_index", torch.argsort(index), persistent=False)
        self.register_load_state_dict_post_hook(_restore_inverse_index)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Permute the channels: channel c of z is channel `index[c]` of x."""
        check_channels(x, self.channels)
        return _permute(x, self.index, self.inverse_index), constant_log_det(x, 0.0)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Undo the permutation."""
        check_channels(z, self.channels)
        return _permute(z, self.inverse_index, self.index)


class _Gather(torch.autograd.Function):
    """Permutation of columns whose gradient is a gather too; that of indexing would be a slower scatter."""

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
    if torch.compiler.is_compiling():  # does not support a custom jvp
        return x.index_select(1, index)
    result: Tensor = _Gather.apply(x, index, inverse)  # type: ignore[no-untyped-call]
    return result


def _permute(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    if is_exported():
        return x.index_select(1, index)
    # torch gathers ten times faster from matrices than from maps, and the result stays channels_last.
    return from_locations(_gather(to_locations(x), index, inverse), (x.shape[2], x.shape[3]))


def _restore_inverse_index(module: nn.Module, _incompatible: object) -> None:
    if isinstance(module, HardPermutation):
        module.inverse_index.copy_(torch.argsort(module.index))


class SoftPermutation(Flow):
    """Fixed random rotation of the channels, z = Q x with Q from the Haar distribution; log_det = 0.

    Args:
        channels: C.
        generator: Random number generator; by default torch's global one.

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
        self.channels = channels
        if blank():
            self.register_buffer("matrix", torch.eye(channels).t())  # in the memory layout of the one below
            return
        # The Q of a Gaussian matrix is Haar-distributed if the diagonal of R is made positive.
        q, r = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))
        q = q * torch.sign(torch.diagonal(r))
        q[:, 0] *= torch.sign(torch.linalg.det(q))
        self.register_buffer("matrix", q.to(torch.get_default_dtype()))

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Rotate the channels of every location."""
        return self._apply_matrix(self.matrix, x), constant_log_det(x, 0.0)

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Rotate back by the transpose."""
        return self._apply_matrix(self.matrix.T, z)

    def _apply_matrix(self, matrix: Tensor, x: Tensor) -> Tensor:
        check_channels(x, self.channels)
        return F.conv2d(x, matrix[:, :, None, None])


class GlobalAffine(Flow):
    """Learned scale and shift of each channel, z = s x + b with log_det = sum_c log s.

    s = 0.1 softplus(g; beta = 0.5) with g learned, so that scales stay positive and grow at most linearly in g. Unlike
    Glow's ActNorm, which has the same form, it is initialized to a constant and not from the first batch. The name is
    FrEIA's.

    Args:
        channels: C.
        start: Initial scale.

    Example:
        >>> x = torch.randn(1, 8, 2, 2)
        >>> torch.allclose(GlobalAffine(8)(x)[0], x, atol=1e-6)
        True
    """

    # The parameterization of FrEIA's all-in-one block, whose step size suits Adam.
    gain, beta = 0.1, 0.5

    @checked
    def __init__(self, channels: int, start: float = 1.0) -> None:
        super().__init__()
        at_least(1, channels=channels)
        positive(start=start)
        self.channels = channels
        target = start * self.beta / self.gain
        raw = (target + math.log(-math.expm1(-target))) / self.beta  # softplus^-1 without overflow
        self.raw_scale = nn.Parameter(torch.full((channels,), raw))
        self.shift = nn.Parameter(torch.zeros(channels))

    def scale(self) -> Tensor:
        """Return s, (C)."""
        return self.gain * F.softplus(self.raw_scale, beta=self.beta)

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Scale and shift every channel."""
        check_channels(x, self.channels)
        scale = self.scale()
        z = torch.addcmul(self.shift[:, None, None], x, scale[:, None, None])
        return z, constant_log_det(x, torch.log(narrow(scale, scale)).sum())

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Undo the shift and the scale."""
        check_channels(z, self.channels)
        return (z - self.shift[:, None, None]) / self.scale()[:, None, None]
