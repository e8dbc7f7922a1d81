"""Eval mode for reading: results of a module whose modes and statistics stay as they are."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_turn = threading.RLock()
_switched: "WeakSet[nn.Module]" = WeakSet()  # by `switched_to_eval` just now
_switches = 0  # so far


@contextmanager
def in_eval_mode(module: M) -> Iterator[M]:
    """Yield a module that computes what `module` computes in eval mode; `module` itself stays as it is.

    If every submodule is in eval mode, it is the module itself. Otherwise it is a copy in eval mode with the same
    parameters and buffers, so that several threads may read at a time, and one of them may even train. A module that
    cannot be copied is switched to eval mode and back, by one thread at a time.

    Example:
        >>> norm, x = nn.BatchNorm1d(4), torch.randn(8, 4)
        >>> with in_eval_mode(norm) as still:
        ...     torch.equal(still(x), x / (1 + norm.eps) ** 0.5), still.weight is norm.weight
        (True, True)
        >>> norm.training, norm.num_batches_tracked.item()
        (True, 0)
    """
    if torch.compiler.is_compiling() or _rests_in_eval_mode(module):
        yield module
        return
    still = _copy(module)
    if still is not None:
        yield still
        return
    with switched_to_eval(module):
        yield module


@contextmanager
def switched_to_eval(module: nn.Module) -> Iterator[None]:
    """Switch every submodule to eval mode, and restore each one's own mode afterwards, by one thread at a time.

    For passes that fit a part of the module. Readers in other threads use `in_eval_mode`.

    Example:
        >>> norm = nn.BatchNorm1d(4)
        >>> with switched_to_eval(norm):
        ...     norm.training
        False
        >>> norm.training
        True
    """
    global _switches
    with _turn:
        training = [part for part in module.modules() if part.training]
        nested = module in _switched
        _switched.add(module)
        _switches += 1
        module.eval()
        try:
            yield
        finally:
            for part in training:
                part.training = True
            if not nested:
                _switched.discard(module)


def _rests_in_eval_mode(module: nn.Module) -> bool:
    """Return whether every submodule is in eval mode, and not only because another thread has switched it."""
    before = _switches
    return module not in _switched and not _trains(module) and before == _switches


def _trains(module: nn.Module) -> bool:
    return any(part.training for part in module.modules())


def _copy(module: M) -> M | None:
    """Copy a module in eval mode, or return None if it cannot be copied.

    Tensors are shared, and so are submodules that are in eval mode as a whole.
    """
    tensors: dict[int, object] = {}
    still: dict[int, object] = {}
    before, steady = _switches, module not in _switched
    for part in module.modules():
        values = (*part._parameters.values(), *part._buffers.values(), *vars(part).values())
        tensors |= {id(x): x for x in values if isinstance(x, Tensor)}
        if not _trains(part):
            still[id(part)] = part
    if not steady or before != _switches:  # another thread may switch them back
        still.clear()
    try:
        return copy.deepcopy(module, {**tensors, **still}).eval()
    except Exception:  # objects of other libraries raise errors of any class
        return None
