"""Weights of an exported detector in float16, and those of its backbone as 8-bit integers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils.parametrize import register_parametrization

from semflow.errors import ConfigError
from semflow.features.eight_bit import to_integers, weight_scale, weighted_layers

LEAST = 2**12
"""Fewest values of a tensor that is stored as float16: smaller ones save nothing."""

KEPT = ("detector.calibration.", "detector.scorer.")
"""Prefixes of tensors that decide or scale scores, which keep their precision."""

SCALE = "parametrizations.weight.original1"
"""Ending of the names of the scales of 8-bit weights, which keep it too."""

LOST = 1e-3
"""Largest relative error of a tensor in float16; those with values that it cannot represent keep their precision."""


class Scaled(nn.Module):
    """Parametrization s q of a fixed weight by 8-bit integers q, with one scale s per output channel.

    Example:
        >>> layer = nn.Linear(64, 8).requires_grad_(False)
        >>> register_parametrization(layer, "weight", Scaled(), unsafe=True).parametrizations.weight.original0.dtype
        torch.int8
    """

    def forward(self, integers: Tensor, scale: Tensor) -> Tensor:
        """Return the weight."""
        return integers.to(scale.dtype) * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest integers and their scale."""
        scale = weight_scale(weight)
        return to_integers(weight, scale), scale


def store_integers(network: nn.Module) -> None:
    """Store the weights of a network's convolutions and linear layers, in place, as 8-bit integers with scales.

    Raises:
        ConfigError: If this would change the weights: maps of the changed network would not be those that the rest of
            the detector was trained on.

    Example:
        >>> from semflow.features import round_weights
        >>> layer = nn.Linear(64, 8).requires_grad_(False)
        >>> round_weights(layer)
        >>> store_integers(layer)
        >>> sorted(x.element_size() for x in layer.state_dict().values())
        [1, 4, 4]
    """
    layers = list(weighted_layers(network))
    for layer in layers:
        scale = weight_scale(layer.weight)
        if not torch.allclose(to_integers(layer.weight, scale) * scale, layer.weight, rtol=1e-5, atol=0):
            raise ConfigError(
                "backbone must have weights that 8 bits can store for precision int8, but got others; fit the detector "
                "with --set backbone.weight_bits 8, call round_weights on a backbone of your own, or use float16"
            )
    for layer in layers:
        register_parametrization(layer, "weight", Scaled(), unsafe=True)


def halve_weights(program: ExportedProgram) -> None:
    """Store the large float32 weights of a program as float16. They are converted back before they are used.

    Args:
        program: Traced detector; it is changed.

    Example:
        >>> class Doubled(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> program = torch.export.export(Doubled(64, 64), (torch.zeros(1, 64),))
        >>> halve_weights(program)
        >>> program.state_dict["weight"].dtype, program.module()(torch.zeros(1, 64)).dtype
        (torch.float16, torch.float32)
    """
    signature, graph = program.graph_signature, program.graph
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in list(graph.nodes):
        name = targets.get(node.name, "") if node.op == "placeholder" else ""
        weight = program.state_dict.get(name)
        if weight is None or name.startswith(KEPT) or name.endswith(SCALE) or not _representable(weight):
            continue
        half = weight.detach().half()
        is_parameter = isinstance(weight, nn.Parameter)
        program.state_dict[name] = nn.Parameter(half, requires_grad=False) if is_parameter else half
        with graph.inserting_after(node):
            cast = graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": torch.float32})
        node.replace_all_uses_with(cast, delete_user_cb=_all_but(cast))
        cast.meta["val"] = node.meta["val"]
        node.meta["val"] = node.meta["val"].to(torch.float16)
    program.graph_module.recompile()


def _representable(weight: Tensor) -> bool:
    if weight.dtype != torch.float32 or weight.numel() < LEAST:
        return False
    error = (weight.half().float() - weight).norm()
    return bool(error <= LOST * weight.norm())  # false for inf and NaN


def _all_but(cast: torch.fx.Node) -> Callable[[torch.fx.Node], bool]:
    return lambda user: user is not cast
