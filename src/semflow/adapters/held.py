"""Search for the modules and tensors that a flow of another library holds outside of any module."""

import dis
import functools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from semflow.errors import ConfigError

_INTERNAL = frozenset(vars(nn.Module()))


class Held(NamedTuple):
    """A module or tensor with the name of the attribute or variable that holds it."""

    name: str
    value: nn.Module | Tensor


def held_by(*objects: object) -> list[Held]:
    """Return the modules and tensors in attributes of objects, their containers, and closures and globals of functions.

    Of modules, which declare their own tensors, only trainable tensors and modules that they did not register are
    listed. Raise ConfigError for a trainable tensor that was computed from others, since it has no gradient of its own.
    """
    search = _Search()
    for value in objects:
        search.visit("value", value)
    known = {id(p) for held in search.found if isinstance(held.value, nn.Module) for p in _tensors(held.value)}
    return [held for held in search.found if id(held.value) not in known]


class _Search:
    """Walk through objects, each of which is visited once."""

    def __init__(self) -> None:
        self.found: list[Held] = []
        self.seen: dict[int, object] = {}  # keeps what it has seen alive, so that no id is used twice

    def visit(self, name: str, value: Any, owner: str = "", of_module: bool = False) -> None:
        """List what `value` holds; in a plain attribute `of_module` only what trains."""
        if id(value) in self.seen or isinstance(value, type | types.ModuleType | str | bytes):
            return
        self.seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensor(name, value, owner, of_module)
        elif isinstance(value, nn.Module):
            self.found.append(Held(name, value))
            self.seen |= {id(module): module for module in value.modules()}
            for module in value.modules():
                for key, inner in vars(module).items():
                    if key not in _INTERNAL:
                        self.visit(key, inner, type(module).__name__, of_module=True)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                self.visit(str(key), inner, owner, of_module)
        elif isinstance(value, Sequence | set | frozenset):
            for inner in value:
                self.visit(name, inner, owner, of_module)
        elif isinstance(value, types.MethodType | functools.partial | types.FunctionType):
            for key, inner in _referenced(value):
                self.visit(key, inner, getattr(value, "__name__", owner))
        elif not of_module or isinstance(value, Transform | Distribution):
            self._attributes(value)

    def _attributes(self, value: Any) -> None:
        of_torch = any(kind.__module__.partition(".")[0] == "torch" for kind in type(value).__mro__)
        if of_torch and not isinstance(value, Transform | Distribution):  # data sets, optimizers, ...
            return
        for key, inner in _attributes_of(value):
            # Transforms keep a weak reference to their inverse; an inverse itself holds the transform there.
            if not key.startswith("_cached"):
                self.visit(key, inner, type(value).__name__)

    def _tensor(self, name: str, value: Tensor, owner: str, of_module: bool) -> None:
        if value.requires_grad and not value.is_leaf and not of_module:
            made = type(value.grad_fn).__name__
            raise ConfigError(
                f"{name} of {owner} must be a parameter itself to be trained, but got the result of a computation "
                f"({made}); compute it in each call from an nn.Parameter, or detach it"
            )
        if value.is_leaf and (value.requires_grad or not of_module):
            self.found.append(Held(name, value))


def _referenced(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function refers to: arguments of a partial, the object of a method, closure and used globals."""
    if isinstance(function, functools.partial):
        yield "function", function.func
        yield from (("argument", value) for value in function.args)
        yield from function.keywords.items()
    elif isinstance(function, types.MethodType):
        yield "self", function.__self__
        yield "function", function.__func__
    else:
        yield from (("default", value) for value in function.__defaults__ or ())
        yield from (function.__kwdefaults__ or {}).items()
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
        for name in dict.fromkeys(_global_names(function.__code__)):
            value = function.__globals__.get(name)
            # Functions of other files are not followed: they may belong to any library.
            if not isinstance(value, types.FunctionType) or value.__globals__ is function.__globals__:
                yield name, value


def _global_names(code: types.CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL":
            yield str(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _global_names(inner)


def _attributes_of(value: object) -> Iterator[tuple[str, Any]]:
    slots = [slot for kind in type(value).__mro__ for slot in _names(getattr(kind, "__slots__", ()))]
    for slot in slots:
        if hasattr(value, slot) and not slot.startswith("__"):
            yield slot, getattr(value, slot)
    yield from getattr(value, "__dict__", {}).items()


def _names(slots: str | Sequence[str]) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def contains(module: nn.Module, part: nn.Module) -> bool:
    """Return whether a module is or has a part."""
    return any(inner is part for inner in module.modules())


def parts_beside(module: nn.Module, part: nn.Module) -> Iterator[Held]:
    """Yield the tensors and modules of a module without `part` and what contains it."""
    for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield Held(name, value)
    for name, child in module.named_children():
        if not contains(child, part):
            yield Held(name, child)
        elif child is not part:
            yield from parts_beside(child, part)


def plain_name(name: str) -> str:
    """Return a name that a module can register."""
    return re.sub(r"\W", "_", name).strip("_") or "value"


def leaves(*results: Tensor, beyond: Sequence[Tensor] = ()) -> list[Tensor]:
    """Return the tensors whose gradients `results` determine, but for `beyond` and what these were computed from.

    Example:
        >>> import torch
        >>> x, scale = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
        >>> leaves(2 * x * scale, beyond=[x])[0] is scale
        True
    """
    found = {id(t): t for t in results if t.requires_grad and t.is_leaf}
    nodes: list[Any] = [t.grad_fn for t in results]
    seen = {t.grad_fn for t in beyond}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found[id(variable)] = variable
        nodes += [following for following, _ in node.next_functions]
    outside = {id(t) for t in beyond}
    return [t for key, t in found.items() if key not in outside]
