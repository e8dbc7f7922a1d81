"""SANFlow's flows against FrEIA 0.2 in the published form and against their own matrix products, at WRN-50's sizes.

A stack of blocks (coupling, global affine, hard permutation; code of 512 channels) for each of the three scales at
256 px, batch 8: a training step is forward, backward and Adam, all stacks one after the other; inference is forward.
Weights and features of both sides are the same, and outputs are compared before anything is timed. FrEIA's condition,
the code of every location, is made beforehand and is not timed. The sides take turns within a round.

The floor is what no flow of this function gets below, its matrix products, with weights of its own for each block, as
plain `torch.mm`.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.flows import FlowSequence
from semflow.functional import to_locations
from semflow.nn import SinusoidalPosition2d

from .coupling import SETTINGS, Setting, Sizes, agree, make_freia, make_ours

__all__ = ["Plan", "measure_flows"]

Seconds = dict[str, list[float]]


class Plan(NamedTuple):
    """How much is measured, and where."""

    blocks: int
    batch: int
    rounds: int
    device: str
    settings: tuple[Setting, ...] = tuple(s for s in SETTINGS if s.backbone == "wide_resnet50_2")
    compiled: bool = True


class Freia(nn.Module):
    """FrEIA's blocks as a flow of locations."""

    def __init__(self, setting: Setting, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make_freia(setting) for _ in range(blocks))

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for block in self.blocks:
            (x,), log_det = block([x], [condition])
            total = total + log_det
        return x, total


class Scale(NamedTuple):
    """One scale: the same function twice, and what both are given."""

    setting: Setting
    x: Tensor
    ours: FlowSequence
    tables: Any
    freia: Freia
    condition: Tensor

    @classmethod
    def make(cls, setting: Setting, plan: Plan) -> "Scale":
        torch.manual_seed(0)
        shape = (plan.batch, setting.channels, setting.size, setting.size)
        x = torch.randn(shape, device=plan.device).contiguous(memory_format=torch.channels_last)
        code = SinusoidalPosition2d(setting.code).to(plan.device)(setting.size, setting.size)
        freia = Freia(setting, plan.blocks)
        ours = FlowSequence(layer for block in freia.blocks for layer in make_ours(setting, block))
        condition = to_locations(code.dense().expand(plan.batch, -1, -1, -1)).contiguous()
        return cls(setting, x, ours.to(plan.device), code, freia.to(plan.device), condition)

    def check(self) -> None:
        """Both sides give the same."""
        with torch.no_grad():
            z, log_det = self.freia(to_locations(self.x), self.condition)
            agree(self.ours(self.x, self.tables), ((z,), log_det))


Forward = Callable[[], tuple[Tensor, Tensor]]


def forwards(scale: Scale, compiled: bool) -> dict[str, tuple[nn.Module, Forward]]:
    rows = to_locations(scale.x)
    sides: dict[str, tuple[nn.Module, Forward]] = {
        "eager": (scale.ours, lambda: scale.ours(scale.x, scale.tables)),
        "freia": (scale.freia, lambda: scale.freia(rows, scale.condition)),
    }
    if compiled:
        function = torch.compile(scale.ours, fullgraph=True, dynamic=False)
        sides["compiled"] = (scale.ours, lambda: function(scale.x, scale.tables))
    return sides


def training_step(module: nn.Module, forward: Forward) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.0, fused=True)  # 0: every step works on the same weights

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        z, log_det = forward()
        (0.5 * z.square().sum() - log_det.sum()).backward()
        optimizer.step()

    return step


def inference(forward: Forward) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            forward()

    return run


def products(scale: Scale, plan: Plan, training: bool) -> Callable[[], None]:
    """The matrix products of all blocks; the first block's features want no gradient."""
    sizes = Sizes.of(scale.setting, plan.batch)
    make = lambda *shape: torch.randn(shape, device=plan.device)  # noqa: E731
    x, hidden = make(sizes.locations, sizes.passive), make(sizes.locations, sizes.hidden)
    out = make(sizes.locations, 2 * sizes.active)
    weights = [(make(sizes.hidden, sizes.passive), make(2 * sizes.active, sizes.hidden)) for _ in range(plan.blocks)]

    def run() -> None:
        with torch.inference_mode():
            for i, (first, second) in enumerate(weights):
                F.linear(x, first)
                F.linear(hidden, second)
                if training:
                    out @ second
                    out.T @ hidden
                    hidden.T @ x
                    if i:
                        hidden @ first

    return run


def clock(device: str) -> float:
    """CPU seconds of this process, which other work on the machine disturbs least; on CUDA seconds, synchronised."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def time_in_turns(runs: dict[str, list[Callable[[], None]]], plan: Plan) -> Seconds:
    """Seconds a round of every side, all its scales."""
    for parts in runs.values():
        for run in parts:
            run()  # compiles, and makes what is made once
    seconds: Seconds = {name: [] for name in runs}
    for turn in range(plan.rounds):
        names = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for name in names:
            began = clock(plan.device)
            for run in runs[name]:
                run()
            seconds[name].append(clock(plan.device) - began)
    return seconds


def ratio(seconds: Seconds, of: str, to: str) -> dict[str, float]:
    """Median and range over the rounds of one side's time over another's."""
    values = sorted(a / b for a, b in zip(seconds[of], seconds[to], strict=True))
    return {"median": round(statistics.median(values), 3), "low": round(values[0], 3), "high": round(values[-1], 3)}


def measure_flows(plan: Plan) -> dict[str, dict[str, float]]:
    """The ratios by name, each with its range; `benchmarks.speed` says what they are."""
    scales = [Scale.make(setting, plan) for setting in plan.settings]
    for scale in scales:
        scale.check()
    found: dict[str, dict[str, float]] = {}
    sides = [forwards(scale, plan.compiled) for scale in scales]
    for kind, name in (("train", "sanflow_train"), ("infer", "sanflow_infer")):
        training = kind == "train"
        runs = {
            side: [training_step(*s[side]) if training else inference(s[side][1]) for s in sides] for side in sides[0]
        }
        runs["gemm"] = [products(scale, plan, training) for scale in scales]
        seconds = time_in_turns(runs, plan)
        for side in ("eager", "compiled") if plan.compiled else ("eager",):
            found[f"{name}_{side}"] = ratio(seconds, "freia", side)
            found[f"gemm_fraction_{kind}_{side}"] = ratio(seconds, "gemm", side)
        print(kind, {side: f"{statistics.median(values):.3f} s" for side, values in seconds.items()}, flush=True)
    del scales, sides, runs
    gc.collect()
    ours, theirs = ([peak_memory(side, setting, plan) for setting in plan.settings] for side in ("ours", "freia"))
    print("peak MiB of a step by scale, semflow:", ours, "FrEIA:", theirs, flush=True)
    share = round(max(ours) / max(theirs), 3)  # scales are trained one after the other: the largest is the peak
    found["sanflow_train_memory"] = {"median": share, "low": share, "high": share}
    return found


def peak_memory(side: str, setting: Setting, plan: Plan) -> float:
    """MiB of a forward and backward pass at their peak, parameters and their gradients aside, in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, side, setting, plan, torch.get_num_threads()).result()


def _peak(side: str, setting: Setting, plan: Plan, threads: int) -> float:
    torch.set_num_threads(threads)
    scale = Scale.make(setting, plan)
    module, forward = forwards(scale, compiled=False)["eager" if side == "ours" else side]
    gradients = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    with _watching(plan.device) as peak:
        z, log_det = forward()
        (0.5 * z.square().sum() - log_det.sum()).backward()
    return round((peak() - gradients) / 2**20, 1)


@contextmanager
def _watching(device: str) -> Iterator[Callable[[], int]]:
    """Bytes at the peak above those before: the allocator's on CUDA, resident memory (of Linux) otherwise."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    Path("/proc/self/clear_refs").write_text("5")  # forgets the earlier peak
    before = _status("VmRSS")
    yield lambda: _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
