"""A CUDA device without a GPU: values in host memory, devices by the rules of FakeTensorMode, and a record of waits.

Every operation on a tensor of the device first runs on fake CUDA tensors, which refuse what a GPU refuses (tensors of
two devices), and then on the values. So whole trainings run, with decisions that depend on data.
"""

import ctypes
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import semflow

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
SOURCE = Path(semflow.__file__).parent
WAITING = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount, aten.histc,
}  # fmt: skip
"""Operations whose result, or its shape, is needed on the host."""
KNOWN: dict[Any, list[torch.device | None]] = {}
"""Devices of the results of an operation, by its operands."""


class Emulated(Tensor):
    """Tensor of the emulated device; its values are `held`. To autograd's engine, it is one of the device `meta`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Emulated":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device="meta",
            _extra_dispatch_keys=torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA),
        )  # fmt: skip
        made.held = held
        return made

    device = property(lambda self: CUDA)
    is_cuda, is_cpu, is_meta = (property(lambda self, is_so=is_so: is_so) for is_so in (True, False, False))
    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the block of `emulated_cuda`")


class EmulatedDevice(TorchDispatchMode):
    """Runs operations; `waits` counts those for which the host waits for the device, by place and operation."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = tree_flatten((args, kwargs))[0]
        given = [x for x in flat if isinstance(x, Emulated)]
        moved = any(isinstance(x, torch.device) and x.type != "cpu" for x in flat)
        if func.overloadpacket in (aten.pin_memory, aten._pin_memory):
            return args[0]
        if func.overloadpacket is aten.is_pinned:
            return False
        if not given and not moved:
            return func(*args, **kwargs)
        wait = _wait(func.overloadpacket, args, kwargs) if given or moved else ""
        if wait:
            self.waits[f"{_place()}: {wait}"] += 1
        unknown = func.overloadpacket in WAITING or wait == "boolean index"
        devices = None if unknown else self._devices(func, args, kwargs)
        originals = {id(x.held): x for x in given}
        args, kwargs = tree_map(_host, (args, kwargs))
        found = func(*args, **kwargs)
        outputs, spec = tree_flatten(found)
        if devices is None:
            devices = [CUDA] * len(outputs)
        pairs = zip(outputs, devices, strict=True)
        wrapped = [_wrap(x, originals) if d is not None and d.type == "cuda" else x for x, d in pairs]
        return torch.utils._pytree.tree_unflatten(wrapped, spec)

    def _devices(self, func, args, kwargs) -> list[torch.device | None]:
        """Return the devices of the results by FakeTensorMode, which raises an error for operands of two devices."""
        leaves, spec = tree_flatten((args, kwargs))
        given = tuple(
            (x.size(), x.stride(), x.dtype, x.device.type) if isinstance(x, Tensor) else (type(x), x) for x in leaves
        )
        key = (func, spec, given)
        if key not in KNOWN:
            with self.fake:
                fake_args, fake_kwargs = tree_map(_fake, (args, kwargs))
                found = tree_flatten(func(*fake_args, **fake_kwargs))[0]
            KNOWN[key] = [x.device if isinstance(x, Tensor) else None for x in found]
        return KNOWN[key]


def _wait(packet, args, kwargs) -> str:
    """Return why the host waits for the device in an operation, or nothing."""
    if packet in WAITING:
        return packet.__name__
    if packet in (aten._to_copy, aten.copy_):
        if packet is aten.copy_:
            target, source, blocking = args[0].device, args[1], not (args[2:] or [kwargs.get("non_blocking")])[0]
        else:
            target, source, blocking = kwargs.get("device"), args[0], not kwargs.get("non_blocking")
        on_host = target is not None and target.type == "cpu"
        if target is not None and on_host != (source.device.type == "cpu") and (on_host or blocking):
            return "copy to the host" if on_host else "copy from the host"
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        indices = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            return "boolean index"
        if any(x.device.type == "cpu" for x in indices):
            return "index from the host"
    return ""


def _place() -> str:
    """Return where the library, or its caller, waits."""
    frames = traceback.extract_stack()
    for frame in reversed(frames):
        if Path(frame.filename).is_relative_to(SOURCE):
            return f"{Path(frame.filename).relative_to(SOURCE).as_posix()} {frame.name}"
    return "caller"


def _host(x: Any) -> Any:
    if isinstance(x, Emulated):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _wrap(x: Any, originals: dict[int, Emulated]) -> Any:
    if not isinstance(x, Tensor):
        return x
    return originals[id(x)] if id(x) in originals else Emulated(x)


def _fake(x: Any) -> Any:
    if isinstance(x, Emulated):
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=CUDA)
    if isinstance(x, Tensor):
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device)
    return CUDA if isinstance(x, torch.device) and x.type == "meta" else x


@contextmanager
def cuda_guard() -> Iterator[None]:
    """Give CUDA the guard of `meta` in a build without CUDA: shapes of some operations are computed with one."""
    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("*c10.*"))))
    guards = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # of c10::DeviceType
    before = guards[cuda]
    guards[cuda] = before or guards[meta]
    try:
        yield
    finally:
        guards[cuda] = before


@contextmanager
def emulated_cuda(monkeypatch) -> Iterator[EmulatedDevice]:
    """Yield a device `cuda` for the block."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with cuda_guard(), EmulatedDevice() as device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
