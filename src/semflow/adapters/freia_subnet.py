"""The subnet of a FrEIA block: layer, ReLU, layer."""

from functools import partial
from typing import cast

from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.nn import ConvSubnet, LocationSubnet, SubnetFactory

__all__ = ["AS_IT_IS", "convert_subnet"]

Layer = nn.Linear | nn.Conv2d

AS_IT_IS = "semflow.adapters.as_flow takes a SequenceINN as it is"
"""The way out of what cannot be converted."""


def convert_subnet(subnet: nn.Module, passive: int, rank: int, where: str) -> tuple[SubnetFactory, dict[str, Tensor]]:
    """A factory of the same subnet, and the weights to load into what it makes.

    Args:
        subnet: `nn.Sequential(layer, nn.ReLU(), layer)`.
        passive: channels that come before those of the condition in the first layer's input.
        rank: 0 where the layers are linear, 2 where they are convolutions.
        where: what errors call the block.

    Raises:
        ConfigError: it is another subnet.
    """
    first, second = _layers(subnet, rank, where)
    hidden = first.weight.shape[0]
    kernel = first.kernel_size[0] if isinstance(first, nn.Conv2d) else 1
    biases = {"first": _bias(first), "second": _bias(second)}
    if kernel > 1:
        weights = {"first.weight": first.weight.detach(), "second.weight": second.weight.detach()}
        return (
            partial(ConvSubnet, hidden=hidden, kernel=kernel),
            weights | {f"{name}.bias": bias for name, bias in biases.items()},
        )
    joint = first.weight.detach().flatten(1)  # of [x; condition]
    weights = {"weight_x": joint[:, :passive], "bias": biases["first"]}
    if joint.shape[1] > passive:
        weights["weight_context"] = joint[:, passive:]
    weights |= {"output.weight": second.weight.detach().flatten(1), "output.bias": biases["second"]}
    return partial(LocationSubnet, hidden=hidden), weights


def _layers(subnet: nn.Module, rank: int, where: str) -> tuple[Layer, Layer]:
    kind = nn.Conv2d if rank else nn.Linear
    layers = list(subnet) if isinstance(subnet, nn.Sequential) else []
    wanted = (kind, nn.ReLU, kind)
    if len(layers) != 3 or not all(isinstance(layer, one) for layer, one in zip(layers, wanted, strict=True)):
        came = ", ".join(type(layer).__name__ for layer in subnet.children())
        raise ConfigError(
            f"{where}: its subnet must be Sequential({kind.__name__}, ReLU, {kind.__name__}) for inputs of "
            f"{rank + 1} dimensions, but got {type(subnet).__name__}({came}); {AS_IT_IS}"
        )
    first, second = cast(Layer, layers[0]), cast(Layer, layers[2])
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
        _check_convolution(first, where)
        _check_convolution(second, where)
        if first.kernel_size != second.kernel_size:
            raise ConfigError(
                f"{where}: the convolutions of its subnet must have one kernel size, but got "
                f"{first.kernel_size} and {second.kernel_size}; {AS_IT_IS}"
            )
    return first, second


def _check_convolution(layer: nn.Conv2d, where: str) -> None:
    height, width = layer.kernel_size
    same = layer.padding in ("same", (height // 2, width // 2))
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not (height == width and height % 2 and same and plain):
        raise ConfigError(
            f"{where}: the convolutions of its subnet must be plain, with odd square kernels and zero padding that "
            f"keeps the map's size, but got {layer}; {AS_IT_IS}"
        )


def _bias(layer: Layer) -> Tensor:
    # The flows here always have biases; one of zeros is none.
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()
