"""Folding of batch normalizations with fixed statistics into the preceding convolutions."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semflow._defaults import blank

from .deferring import deferred_compiler


@deferred_compiler()
@torch.no_grad()
def fold_batch_norm(network: nn.Module, example: Tensor) -> int:
    """Fold each batch normalization that follows a convolution into its weights, in place.

    `s (W x + b) + t = (s W) x + (s b + t)` with `s = weight / sqrt(running_var + eps)`: the maps are equal up to
    rounding. The pairs are observed in one forward pass of `example` in eval mode, not derived from names: a pair is
    folded only if the normalization is the only use of the convolution's output, and each layer ran once. Return the
    number of folded layers.
    """
    modules = {name: m for name, m in network.named_modules() if not (m._forward_hooks or m._forward_pre_hooks)}
    pairs = list(_pairs(network, modules, example)) if any(map(_is_batch_norm, modules.values())) else []
    for conv, norm, name in pairs:
        _fold(conv, norm)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, _remainder(norm))
    return len(pairs)


def _is_conv(module: nn.Module) -> bool:
    # Exact types: subclasses that standardize or mix their weights in the forward pass cannot be scaled beforehand.
    return type(module) is nn.Conv2d or type(module).__name__ == "Conv2dSame"


def _is_batch_norm(module: nn.Module) -> bool:
    plain = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return plain and getattr(module, "running_mean", None) is not None


def _remainder(norm: nn.Module) -> nn.Module:
    """Return the rest of a normalization layer: timm's BatchNormAct2d also has an activation."""
    layers = [getattr(norm, name, None) for name in ("drop", "act")]
    rest = [m for m in layers if isinstance(m, nn.Module) and not isinstance(m, nn.Identity)]
    return nn.Identity() if not rest else rest[0] if len(rest) == 1 else nn.Sequential(*rest)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    if blank():  # both are loaded afterwards
        conv.weight.requires_grad_(False)
        conv.bias = nn.Parameter(torch.zeros_like(norm.running_mean, dtype=conv.weight.dtype), requires_grad=False)
        return
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)


class _Uses(TorchDispatchMode):
    """Counter of the operators that use each watched tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched: dict[int, Tensor] = {}  # references, so that no later tensor gets the same id
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for argument in tree_leaves((args, kwargs)):
            if id(argument) in self.watched:
                self.count[id(argument)] += 1
        return func(*args, **(kwargs or {}))


def _pairs(
    network: nn.Module, modules: Mapping[str, nn.Module], example: Tensor
) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d, str]]:
    """Yield each convolution with the normalization, and its name, that is the only use of its output."""
    uses = _Uses()
    source: dict[int, nn.Module] = {}  # convolutions by the id of their output
    target: dict[str, int] = {}  # ids of the inputs of normalizations by their name
    calls: Counter[nn.Module] = Counter()

    def after_conv(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[module] += 1
        source[id(output)] = module
        uses.watched[id(output)] = output

    def before_norm(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[module] += 1
            if id(inputs[0]) in source:  # watched; the id of any other tensor may be reused
                target[name] = id(inputs[0])

        return hook

    with ExitStack() as hooks, uses:
        for name, module in modules.items():
            if _is_conv(module):
                hooks.enter_context(module.register_forward_hook(after_conv))
            elif _is_batch_norm(module):
                hooks.enter_context(module.register_forward_pre_hook(before_norm(name)))
        output = network(example)
    returned = {id(m) for m in tree_leaves(output)}
    for name, tensor in target.items():
        norm, conv = modules[name], source.get(tensor)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or tensor in returned:
            continue
        if uses.count[tensor] == 1 and calls[conv] == 1 and calls[norm] == 1:
            yield conv, norm, name
