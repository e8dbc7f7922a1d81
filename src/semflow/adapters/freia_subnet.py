"""Conversion of the subnet of a FrEIA block: layer, ReLU, layer."""

from functools import partial
from typing import cast

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.nn import ConvSubnet, LocationSubnet, SubnetFactory

__all__ = ["WRAP_INSTEAD", "convert_subnet"]

Layer = nn.Linear | nn.Conv2d

WRAP_INSTEAD = "wrap the whole SequenceINN with semflow.as_flow instead"
"""Advice in errors about blocks that cannot be converted."""


def convert_subnet(subnet: nn.Module, passive: int, rank: int, where: str) -> tuple[SubnetFactory, dict[str, Tensor]]:
    """Convert a subnet of linear layers or convolutions.

    Args:
        subnet: `nn.Sequential(layer, nn.ReLU(), layer)`.
        passive: channels before those of the condition in the first layer's input.
        rank: 0 if the layers are linear, 2 if they are convolutions.
        where: name of the block in error messages.

    Returns:
        A factory of the same subnet, and the weights to load into its result.

    Raises:
        ConfigError: the subnet has other layers.
    """
    first, second = _layers(subnet, rank, where)
    hidden = first.weight.shape[0]
    kernel = first.kernel_size[0] if isinstance(first, nn.Conv2d) else 1
    first_weight, second_weight = first.weight.detach(), second.weight.detach()
    if kernel > 1:
        weights = {
            "first.weight": first_weight,
            "first.bias": _bias(first),
            "second.weight": second_weight,
            "second.bias": _bias(second),
        }
        return partial(ConvSubnet, hidden=hidden, kernel=kernel), weights
    joint = first_weight.flatten(1)  # columns of x, then of the condition
    weights = {
        "weight_x": joint[:, :passive],
        "bias": _bias(first),
        "output.weight": second_weight.flatten(1),
        "output.bias": _bias(second),
    }
    if joint.shape[1] > passive:
        weights["weight_context"] = joint[:, passive:]
    return partial(LocationSubnet, hidden=hidden), weights


def _layers(subnet: nn.Module, rank: int, where: str) -> tuple[Layer, Layer]:
    kind = nn.Conv2d if rank else nn.Linear
    layers = list(subnet.children())
    wanted = (kind, nn.ReLU, kind)
    same = len(layers) == 3 and all(isinstance(layer, one) for layer, one in zip(layers, wanted, strict=True))
    if not (same and isinstance(subnet, nn.Sequential)):
        names = ", ".join(type(layer).__name__ for layer in layers)
        raise ConfigError(
            f"{where}: the subnet must be Sequential({kind.__name__}, ReLU, {kind.__name__}) for inputs of {rank + 1} "
            f"dimensions, but got {type(subnet).__name__}({names}); {WRAP_INSTEAD}"
        )
    first, second = cast(Layer, layers[0]), cast(Layer, layers[2])
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
        for layer in (first, second):
            _check_convolution(layer, where)
        if first.kernel_size != second.kernel_size:
            raise ConfigError(
                f"{where}: the convolutions of the subnet must have one kernel size, but got {first.kernel_size} and "
                f"{second.kernel_size}; {WRAP_INSTEAD}"
            )
    return first, second


def _check_convolution(layer: nn.Conv2d, where: str) -> None:
    height, width = layer.kernel_size
    same = layer.padding in ("same", (height // 2, width // 2))
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not (height == width and height % 2 and same and plain):
        raise ConfigError(
            f"{where}: the convolutions of the subnet must have odd square kernels, zero padding that keeps the size, "
            f"and no stride, dilation or groups, but got {layer}; {WRAP_INSTEAD}"
        )


def _bias(layer: Layer) -> Tensor:
    """Return the layer's bias, or zeros if it has none: the flows here always have one."""
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()
