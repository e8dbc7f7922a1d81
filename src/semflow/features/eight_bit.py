"""Weights with 255 values per output channel, which 8-bit integers store exactly."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semflow.errors import ConfigError

LARGEST = 127


def weighted_layers(network: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    """Yield the convolutions and linear layers of a network.

    Example:
        >>> len(list(weighted_layers(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten()))))
        1
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module


def weight_scale(weight: Tensor) -> Tensor:
    """Return s of weights s q with integers q from -127 to 127, one per output channel: (C, 1, ...) for (C, ...).

    Example:
        >>> weight_scale(torch.tensor([[254.0, -1.0], [0.0, 0.0]]))
        tensor([[2.],
                [1.]])
    """
    largest = weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)
    return scale.view(-1, *[1] * (weight.dim() - 1))


def to_integers(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the nearest integers q (int8) of weights s q.

    Example:
        >>> to_integers(torch.tensor([[254.0, -1.1]]), torch.tensor([[2.0]]))
        tensor([[127,  -1]], dtype=torch.int8)
    """
    return (weight.detach() / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8)


@torch.no_grad()
def round_weights(network: nn.Module) -> None:
    """Round the weights of convolutions and linear layers, in place, to those that 8-bit integers can store.

    Each is rounded to the nearest multiple of 1/127 of the largest of its output channel. Biases and normalizations
    keep their values.

    Raises:
        ConfigError: If a weight is computed from others, as in weight normalization, or is of a narrow type.

    Example:
        >>> layer = nn.Linear(64, 8)
        >>> round_weights(layer)
        >>> all(len(row.unique()) <= 255 for row in layer.weight)
        True
    """
    for layer in weighted_layers(network):
        own = layer._parameters.get("weight")
        if own is None or own.dtype not in (torch.float32, torch.float64):
            found = "a computed one" if own is None else f"{own.dtype}"
            raise ConfigError(f"network must have float32 or float64 weights of its own, but got {found}")
        scale = weight_scale(layer.weight)
        layer.weight.copy_(to_integers(layer.weight, scale) * scale)
