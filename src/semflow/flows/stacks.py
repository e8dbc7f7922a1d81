"""Stack of couplings shared by SANFlow, CFLOW-AD, FastFlow and MSFlow."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from semflow._validation import at_least, checked
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
    """Stack `blocks` blocks of coupling, global affine and permutation (RealNVP; FrEIA's all-in-one block).

    Args:
        channels: C.
        blocks: Number of blocks, at least 1.
        subnets: Subnet factories that the blocks use in turn; FastFlow alternates 3x3 and 1x1 convolutions.
        context_channels: D of the context of every coupling, 0 for none.
        permutation: `hard` permutes the channels, `soft` rotates them.
        standardize: Start with a `Standardize`, which must be fitted to the features.
        start: Initial scale of the last global affine, which gives latents the variance of the base.
        clamp: Bound of the log-scales of the couplings.
        clamp_form: See `semflow.functional.soft_clamp`.

    Returns:
        The sequence of flows.

    Raises:
        ConfigError: If an argument is invalid.

    Example:
        >>> flow = coupling_stack(40, blocks=2, context_channels=128, standardize=True)
        >>> [type(layer).__name__ for layer in flow][:4]
        ['Standardize', 'AffineCoupling', 'GlobalAffine', 'HardPermutation']
    """
    at_least(1, blocks=blocks)
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
