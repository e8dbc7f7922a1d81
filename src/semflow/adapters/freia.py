"""Flows trained with FrEIA as couplings of this library, weights and all."""

from torch import nn

from semflow.errors import ConfigError
from semflow.flows import Flow, FlowSequence

from .freia_block import ATTRIBUTES, convert_block
from .freia_check import check_same
from .freia_subnet import AS_IT_IS

__all__ = ["condition_index", "from_freia", "is_block", "is_sequence"]


def from_freia(module: nn.Module) -> FlowSequence:
    """The same function as a FrEIA flow of all-in-one blocks, with its weights, in this library's flows.

    An `AllInOneBlock` is z = R (g a(x) + b): an affine coupling a, a global scale g and shift b, and a permutation or
    rotation R; with `reverse_permutation` it is z = R (g a(R^-1 x) + b). So it becomes `AffineCoupling`,
    `GlobalAffine`, and `HardPermutation` or `SoftPermutation`, which cost less: a hard permutation is an index where
    FrEIA 0.2 multiplies by a matrix, and the columns of the first layer that belong to the condition become a
    `LocationSubnet`'s own weight, so that a position code is never repeated for every location.

    FrEIA's vectors (N, C) are this library's (N, C, 1, 1), and its locations (B H W, C), as CFLOW-AD and SANFlow feed
    them, are maps (B, C, H, W); both with a log-det of each location. Maps are maps; subnets of 1x1 kernels give a
    log-det of each location, of which FrEIA's is the sum. A condition is the `context`; several conditions of one
    block are concatenated, in FrEIA's order.

    The soft clamp is read off the block's own arithmetic: c tanh(s) in FrEIA 0.2 and in anomalib's copy of the
    block, c tanh(s / c) in FrEIA's development version. At last both sides are run on noise: a block that merely looks
    like FrEIA's is refused.

    Three things are the same function but train differently: `SIGMOID` and `EXP` global scales become softplus ones,
    the reflections of `learned_householder_permutation` are multiplied out into a fixed rotation, and layers without
    a bias get one, of zeros.

    Args:
        module: an `AllInOneBlock`, or a `SequenceINN` of them: of vectors (C,) or maps (C, H, W), with a subnet
            `nn.Sequential(layer, nn.ReLU(), layer)` of linear layers or of convolutions that keep the map's size.
            It is left as it is, and shares no memory with the result.

    Returns:
        A flow in the module's dtype, on its device and in its mode (training or evaluation).

    Raises:
        ConfigError: the module is something else, or uses what has no counterpart here (`gin_block`, other subnets,
            blocks of several kinds or with different conditions); it names the block and the option.

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
        raise ConfigError(
            "module must be FrEIA's AllInOneBlock or a SequenceINN of them, "
            f"but got {type(module).__module__}.{type(module).__qualname__}"
        )
    flows: list[Flow] = []
    for where, block in blocks.items():
        if not is_block(block):
            raise ConfigError(f"{where} must be an AllInOneBlock, but got {type(block).__qualname__}; {AS_IT_IS}")
        converted = convert_block(block, where)
        check_same(block, FlowSequence(converted), where)
        flows += converted
    return FlowSequence(flows).train(module.training)


def is_block(module: object) -> bool:
    """Whether it has what an all-in-one block has. By attributes: copies of the block live outside FrEIA."""
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in ATTRIBUTES)


def is_sequence(module: object) -> bool:
    """Whether it has what FrEIA's SequenceINN has."""
    return isinstance(module, nn.Module) and all(hasattr(module, n) for n in ("module_list", "conditions", "shapes"))


def condition_index(sequence: nn.Module) -> int | None:
    """Which of the conditions a SequenceINN's blocks are given; None if they are given none.

    Raises:
        ConfigError: different blocks are given different ones, or there is no block.
    """
    conditions: list[int | None] = list(sequence.conditions)  # type: ignore[arg-type]
    if not conditions:
        raise ConfigError("module must hold at least one block, but this SequenceINN is empty: append its blocks first")
    used = sorted({index for index in conditions if index is not None})
    if len(used) > 1:
        raise ConfigError(
            f"cond must be the same for all blocks of a SequenceINN, since a flow has one context, but got {used}; "
            "convert the blocks one by one, and give each its own"
        )
    return used[0] if used else None
