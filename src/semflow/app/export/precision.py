"""Weights of a traced detector in float16."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

LEAST = 2**12
"""Fewest values of a tensor that is stored as float16: smaller ones save nothing."""

KEPT = ("detector.calibration.", "detector.scorer.")
"""Prefixes of tensors that decide or scale scores, which keep their precision."""

LOST = 1e-3
"""Largest relative error of a tensor in float16; those with values that it cannot represent keep their precision."""


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
        if weight is None or name.startswith(KEPT) or not _representable(weight):
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
