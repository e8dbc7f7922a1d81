"""Conversion of FrEIA's all-in-one blocks to this library's flows, weights included."""

from typing import Any

import torch
from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows import Flow, FlowSequence

from .foreign import describe, first_line
from .freia_block import WRAP_INSTEAD, convert_block, is_block
from .freia_flow import condition_index, is_sequence

__all__ = ["from_freia"]


def from_freia(module: nn.Module) -> FlowSequence:
    """Convert a FrEIA flow of all-in-one blocks to the same function in this library's flows.

    An `AllInOneBlock` is z = R (g a(x) + b): an affine coupling a, a global scale g and shift b, and a permutation or
    rotation R; with `reverse_permutation`, z = R (g a(R^-1 x) + b). The conversion gives `AffineCoupling`,
    `GlobalAffine`, and `HardPermutation` or `SoftPermutation`. They are faster: a hard permutation is an index where
    FrEIA 0.2 multiplies by a matrix, and `LocationSubnet` does not repeat a position code for every location.

    FrEIA's vectors (N, C) become (N, C, 1, 1), and its locations (B H W, C), as CFLOW-AD and SANFlow use them, maps
    (B, C, H, W), both with a log-det per location. Maps stay maps; with 1x1 kernels they get a log-det per location,
    whose sum is FrEIA's. A condition becomes the `context`; several conditions of one block are concatenated in FrEIA's
    order.

    The form of the soft clamp is detected: c tanh(s) in FrEIA 0.2 and in anomalib's copy of the block, c tanh(s / c) in
    FrEIA's development version. Finally, every block and its conversion are compared on random inputs.

    Three parts are the same function but train differently: `SIGMOID` and `EXP` global scales become softplus ones, the
    reflections of `learned_householder_permutation` become a fixed rotation, and layers without a bias get a zero one.

    The result has the module's dtype, device and mode, and shares no memory with it.

    Args:
        module: an `AllInOneBlock`, or a `SequenceINN` of them, of vectors (C,) or maps (C, H, W), with a subnet
            `nn.Sequential(layer, nn.ReLU(), layer)` of linear layers or of convolutions that keep the map's size.

    Raises:
        ConfigError: the module is something else, or has an option without counterpart (`gin_block`, other subnets,
            other kinds of blocks, different conditions); the message names the block and the option.

    Example:
        >>> import torch
        >>> from FrEIA.modules import AllInOneBlock
        >>> def subnet(inputs, outputs):
        ...     return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))
        >>> theirs = AllInOneBlock([(6,)], [(8,)], subnet_constructor=subnet)
        >>> ours, x, code = from_freia(theirs), torch.randn(5, 6), torch.randn(5, 8)
        >>> (z,), log_det = theirs([x], [code])
        >>> our_z, our_log_det = ours(x[:, :, None, None], code[:, :, None, None])
        >>> torch.allclose(our_z[:, :, 0, 0], z, atol=1e-5), torch.allclose(our_log_det[:, 0, 0], log_det, atol=1e-5)
        (True, True)
    """
    if is_block(module):
        blocks = {"module": module}
    elif is_sequence(module):
        condition_index(module)
        blocks = {f"module_list[{i}]": block for i, block in enumerate(module.module_list)}  # type: ignore[arg-type]
    else:
        raise ConfigError(f"module must be FrEIA's AllInOneBlock or a SequenceINN of them, but got {describe(module)}")
    flows: list[Flow] = []
    for where, block in blocks.items():
        if not is_block(block):
            raise ConfigError(f"{where} must be an AllInOneBlock, but got {type(block).__qualname__}; {WRAP_INSTEAD}")
        converted = convert_block(block, where)
        _check_same(block, FlowSequence(converted), where)
        flows += converted
    return FlowSequence(flows).train(module.training)


def _check_same(block: Any, flow: FlowSequence, where: str) -> None:
    """Raise ConfigError if a block and its conversion differ on random inputs: many projects carry a changed copy."""
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
                f"{where} must take {tuple(x.shape)} of {x.dtype}, but got {type(error).__name__}: {first_line(error)}"
            ) from error
        context = _as_map(torch.cat(conditions, dim=1)) if conditions else None
        our_z, our_log_det = flow(_as_map(x), context)
    # In float32 the tolerance covers TF32 convolutions; a wrong conversion differs by far more.
    tolerance = 1e-3 if like.dtype in (torch.float32, torch.float64) else 5e-2
    difference = max(_deviation(our_z, _as_map(z)), _deviation(our_log_det.reshape(2, -1).sum(1), log_det))
    if not difference <= tolerance:
        raise ConfigError(
            f"{where} must compute the same as FrEIA's AllInOneBlock, but got results of {describe(block)} that differ "
            f"by {difference:.2g}; {WRAP_INSTEAD}"
        )


def _as_map(x: Tensor) -> Tensor:
    return x[:, :, None, None] if x.dim() == 2 else x


def _deviation(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value, or to 1."""
    difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0)
    return difference.item()
