"""The stack of couplings that SANFlow, CFLOW-AD, FastFlow and MSFlow share, with its switches."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from semflow._validation import at_least, checked
from semflow.errors import ConfigError
from semflow.functional import Clamp
from semflow.nn import LocationSubnet, SubnetFactory

from .coupling import AffineCoupling
from .mixing import GlobalAffine, HardPermutation, SoftPermutation
from .sequence import FlowSequence
from .standardize import Standardize

__all__ = ["coupling_stack"]


@checked
def coupling_stack(
    channels: int,
    blocks: int,
    subnets: Sequence[SubnetFactory] = (LocationSubnet,),
    *,
    context_channels: int = 0,
    permutation: Literal["hard", "soft"] = "hard",
    standardize: bool = False,
    start: float = 1.0,
    clamp: float = 1.9,
    clamp_form: Clamp = "tanh",
) -> FlowSequence:
    """`blocks` times coupling, global affine and permutation (RealNVP, as FrEIA's all-in-one block has it).

    Args:
        channels: C.
        blocks: L.
        subnets: factories that the blocks take in turn: `(conv3x3, conv1x1)` alternates, as FastFlow does.
        context_channels: D of the context of every coupling, 0 for none.
        permutation: `hard` permutes the channels, `soft` rotates them.
        standardize: begin with a `Standardize`, to be fitted to the features.
        start: the scale of the last global affine at the start, which brings latents of unit variance to the base's.
        clamp, clamp_form: of the couplings.

    Raises:
        ConfigError: no block, or no such permutation.

    Example:
        >>> flow = coupling_stack(40, blocks=2, context_channels=128, standardize=True)
        >>> [type(layer).__name__ for layer in flow][:4]
        ['Standardize', 'AffineCoupling', 'GlobalAffine', 'HardPermutation']
    """
    at_least(1, blocks=blocks)
    if permutation not in ("hard", "soft"):
        raise ConfigError(f"permutation must be hard or soft, but got {permutation!r}")
    mixing = HardPermutation if permutation == "hard" else SoftPermutation
    layers: list[nn.Module] = [Standardize(channels)] if standardize else []
    for block in range(blocks):
        subnet = subnets[block % len(subnets)]
        layers += [
            AffineCoupling(channels, subnet, context_channels, clamp, clamp_form),
            GlobalAffine(channels, start=start if block == blocks - 1 else 1.0),
            mixing(channels),
        ]
    return FlowSequence(layers)
