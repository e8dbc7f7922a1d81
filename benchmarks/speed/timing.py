"""Measurement of time and memory: alternating sides, CPU and wall seconds, memory peaks in fresh processes."""

import ctypes
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Ratio",
    "Report",
    "Seconds",
    "Variant",
    "all_threads",
    "apart",
    "best",
    "in_turns",
    "linears",
    "missing",
    "no_compiler",
    "peaks",
    "ratio",
    "square_products",
    "status_bytes",
    "stopwatch",
    "using_threads",
    "watching_memory",
]

T = TypeVar("T")
Ratio = dict[str, float | str]
Linear = Callable[..., Tensor]
EXTRAS = {"anomalib": "peers", "FrEIA": "freia", "sklearn": "bench", "matplotlib": "plot"}


class Seconds(NamedTuple):
    """CPU seconds of this process, over all threads, and wall seconds of one run."""

    cpu: float
    wall: float


class Variant(NamedTuple):
    """Setting of a comparison; its suffix is appended to the names of ratios."""

    suffix: str
    backbone: str
    batch: int
    threads: int = 1

    @property
    def by(self) -> str:
        """Clock: CPU time for one thread, which other processes disturb least, otherwise wall time."""
        return "cpu" if self.threads == 1 else "wall"


class Report:
    """Results of a run: ratios by name, rows by section, and skipped comparisons with the reason."""

    def __init__(self) -> None:
        self.ratios: dict[str, Ratio] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.skipped: dict[str, str] = {}

    def ratio(self, name: str, found: Ratio) -> None:
        self.ratios[name] = found
        more = "".join(f", {key} {value}" for key, value in found.items() if key not in ("median", "low", "high"))
        print(f"{name:44} {found['median']:7.3f}   ({found['low']:.3f} to {found['high']:.3f}{more})", flush=True)

    def row(self, section: str, **values: Any) -> None:
        self.rows.setdefault(section, []).append(values)
        print(f"  {section}: " + ", ".join(f"{key} {value}" for key, value in values.items()), flush=True)

    def skip(self, reason: str, *names: str) -> None:
        for name in names:
            self.skipped[name] = reason
            print(f"{name:44} skipped: {reason}", flush=True)


def all_threads() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing(*modules: str) -> str | None:
    """Return the first module that is not installed and how to install it, or None."""
    for name in modules:
        if find_spec(name) is None:
            return f"{name} is not installed: python -m pip install -c constraints.txt -e '.[{EXTRAS[name]}]'"
    return None


def no_compiler() -> str | None:
    """Return why torch.compile cannot be measured on a CPU, or None."""
    if any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return None
    return "torch.compile needs a C++ compiler, but there is no g++ or clang++"


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Set torch's number of threads and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stopwatch(device: str = "cpu") -> Iterator[Callable[[], Seconds]]:
    """Yield a function that returns the seconds since its creation; on CUDA it waits for the device."""

    def now() -> tuple[float, float]:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    cpu, wall = now()

    def passed() -> Seconds:
        after = now()
        return Seconds(after[0] - cpu, after[1] - wall)

    yield passed


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", least: float = 0.05
) -> dict[str, list[Seconds]]:
    """Run every side once per round, starting each round with another side; return one entry per round.

    Every side runs once before the first round, which includes compilation, and repeats within its turn until `least`
    seconds have passed.
    """
    for run in runs.values():
        run()
    found: dict[str, list[Seconds]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(_repeated(runs[name], device, least))
    return found


def _repeated(run: Callable[[], object], device: str, least: float) -> Seconds:
    """Return the mean over runs that take `least` wall seconds; waits for CUDA after 1, 2, 4, ... runs."""
    count, more = 0, 1
    with stopwatch(device) as passed:
        while True:
            for _ in range(more):
                run()
            count, more = count + more, count + more
            total = passed()
            if total.wall >= least:
                return Seconds(total.cpu / count, total.wall / count)


def best(seconds: Mapping[str, list[Seconds]], names: Sequence[str], by: str = "cpu") -> str:
    """Return the setting of one side with the lowest median."""
    return min(names, key=lambda name: statistics.median(getattr(one, by) for one in seconds[name]))


def ratio(seconds: Mapping[str, list[Seconds]], of: str, to: str, by: str = "cpu") -> Ratio:
    """Return median and range over rounds of one side's time over another's, and the median by the other clock."""
    found: Ratio = {}
    for clock in (by, "wall" if by == "cpu" else "cpu"):
        values = sorted(getattr(a, clock) / getattr(b, clock) for a, b in zip(seconds[of], seconds[to], strict=True))
        median = round(statistics.median(values), 3)
        if clock == by:
            found = {"median": median, "low": round(values[0], 3), "high": round(values[-1], 3)}
        else:
            found[f"by {clock}"] = median
    return found


def linears() -> dict[str, tuple[Linear, Linear]]:
    """Return float32 products x W^T by name, each with a function that prepares a W for repeated use.

    torch calls MKL on x86; the product of oneDNN, which has no public name, is faster on some processors.
    """
    found: dict[str, tuple[Linear, Linear]] = {"gemm": (F.linear, lambda weight, rows: weight)}
    point, pack = (getattr(torch.ops.mkldnn, name, None) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    if point is not None and pack is not None and torch.backends.mkl.is_available() and torch.backends.mkldnn.enabled:
        found["gemm oneDNN"] = (lambda x, weight: point(x, weight, None, "none", [], ""), pack)
    return found


def square_products(size: int = 2048) -> tuple[dict[str, Callable[[], object]], float]:
    """Return a large float32 product by each of `linears`, and its number of floating-point operations."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    runs = {name: partial(linear, a, prepare(b, size)) for name, (linear, prepare) in linears().items()}
    return runs, 2.0 * size**3


def peaks(function: Callable[..., Sequence[int]], *arguments: object) -> list[float]:
    """Run `function` in a fresh process and convert the bytes it returns to MiB."""
    return [round(number / 2**20, 1) for number in apart(function, *arguments)]


def apart(function: Callable[..., T], *arguments: object) -> T:
    """Run `function` in a fresh process with the same number of threads and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_threads, torch.get_num_threads(), function, *arguments).result()


def _with_threads(threads: int, function: Callable[..., T], *arguments: object) -> T:
    torch.set_num_threads(threads)
    return function(*arguments)


@contextmanager
def watching_memory(device: str) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak increase in bytes, of CUDA's allocator or of resident memory on Linux."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # otherwise memory freed earlier is reused and not counted
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_bytes("VmRSS")
    yield lambda: status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
