"""Speed of SANFlow's flows against FrEIA 0.2 in the published form and against their own matrix products.

A stack of blocks (coupling, global affine, hard permutation; code of 512 channels) for each of a backbone's three
scales at 256 px. A training step is forward, backward and Adam for one stack after the other; inference is forward.
Both sides have the same weights and features, and their outputs are compared first. FrEIA's condition, the code of
every location, is prepared beforehand and not timed. Compiled, FrEIA's faster form counts, compiled or not.

The floor is the time of the matrix products of this function, with separate weights for each block, by torch or by
oneDNN, whichever is faster. `gemm_bound_*` is FrEIA's time over the floor.
"""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semflow.flows import FlowSequence
from semflow.functional import to_locations
from semflow.nn import SinusoidalPosition2d

from .coupling import Setting, Sizes, agree, make_freia, make_ours
from .timing import (
    Report,
    Variant,
    best,
    in_turns,
    linears,
    missing,
    peaks,
    ratio,
    using_threads,
    watching_memory,
)

__all__ = ["Plan", "measure_flows"]

CHANNELS = {"wide_resnet50_2": (512, 1024, 2048), "resnet18": (128, 256, 512)}
GROUP = 1024  # locations per group
SIZES, CODE = (32, 16, 8), 512  # at strides 8, 16 and 32 for 256 px


class Plan(NamedTuple):
    """Amount of work and device."""

    blocks: int
    rounds: int
    device: str = "cpu"
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
    """One scale: the same function on both sides, and their input."""

    setting: Setting
    x: Tensor
    ours: FlowSequence
    tables: Any
    freia: Freia
    condition: Tensor

    @classmethod
    def make(cls, setting: Setting, batch: int, plan: Plan) -> "Scale":
        torch.manual_seed(0)
        shape = (batch, setting.channels, setting.size, setting.size)
        x = torch.randn(shape, device=plan.device).contiguous(memory_format=torch.channels_last)
        code = SinusoidalPosition2d(setting.code).to(plan.device)(setting.size, setting.size)
        freia = Freia(setting, plan.blocks)
        ours = FlowSequence(layer for block in freia.blocks for layer in make_ours(setting, block))
        condition = to_locations(code.dense().expand(batch, -1, -1, -1)).contiguous()
        return cls(setting, x, ours.to(plan.device), code, freia.to(plan.device), condition)

    def check(self) -> None:
        """Assert that both sides give the same results."""
        with torch.no_grad():
            z, log_det = self.freia(to_locations(self.x), self.condition)
            agree(self.ours(self.x, self.tables), ((z,), log_det))


Forward = Callable[[], tuple[Tensor, Tensor]]


def settings(backbone: str) -> tuple[Setting, ...]:
    return tuple(Setting(backbone, c, size, CODE) for c, size in zip(CHANNELS[backbone], SIZES, strict=True))


def forwards(scale: Scale, compiled: bool) -> dict[str, tuple[nn.Module, Forward]]:
    rows = to_locations(scale.x)
    sides: dict[str, tuple[nn.Module, Callable[..., Any], tuple[Any, ...]]] = {
        "eager": (scale.ours, scale.ours, (scale.x, scale.tables)),
        "freia": (scale.freia, scale.freia, (rows, scale.condition)),
    }
    if compiled:
        ours, freia = (torch.compile(m, fullgraph=True, dynamic=False) for m in (scale.ours, scale.freia))
        sides["compiled"] = (scale.ours, ours, sides["eager"][2])
        sides["freia compiled"] = (scale.freia, freia, sides["freia"][2])
    return {name: (module, partial(call, *given)) for name, (module, call, given) in sides.items()}


def training_step(module: nn.Module, forward: Forward) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.0, fused=True)  # with 0 every step uses the same weights

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        z, log_det = forward()
        (0.5 * z.square().sum() - log_det.sum()).backward()
        optimizer.step()

    return step


def inference(module: nn.Module, forward: Forward) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            forward()

    return run


def products(scale: Scale, plan: Plan, training: bool) -> Callable[[], None]:
    """Return the matrix products of all blocks, by the fastest of `linears`, in groups that fit into the cache.

    The first block's features want no gradient.
    """
    sizes = Sizes.of(scale.setting, len(scale.x))
    make = lambda *shape: torch.randn(shape, device=plan.device)  # noqa: E731
    groups = [(make(n, sizes.passive), make(n, sizes.hidden), make(n, 2 * sizes.active)) for n in parts(sizes)]
    weights = [(make(sizes.hidden, sizes.passive), make(2 * sizes.active, sizes.hidden)) for _ in range(plan.blocks)]
    rows = len(groups[0][0])
    ways = linears() if plan.device == "cpu" else {"gemm": linears()["gemm"]}

    def quickest(weight: Tensor, given: int) -> Callable[[Tensor], Tensor]:
        """Return the product of a weight with a tensor of one group."""
        runs = {name: partial(call, weight=prepare(weight, rows)) for name, (call, prepare) in ways.items()}
        seconds = in_turns({name: partial(run, groups[0][given]) for name, run in runs.items()}, 3, plan.device, 0.0)
        return runs[best(seconds, list(runs))]

    to_hidden, to_out = ([quickest(pair[i], i) for pair in weights] for i in (0, 1))
    # The weight of a gradient is used once, so it is not reordered.
    back_hidden, back_x = ([pair[i].T for pair in weights] for i in (1, 0))
    ways = {name: (call, lambda weight, rows: weight) for name, (call, _) in ways.items()}
    from_out, from_hidden = ([quickest(w, given) for w in back] for back, given in ((back_hidden, 2), (back_x, 1)))
    gradients = [torch.empty_like(weight) for weight in weights[0]]

    def run() -> None:
        with torch.inference_mode():
            for i in range(plan.blocks):
                for group, (x, hidden, out) in enumerate(groups):
                    to_hidden[i](x)
                    to_out[i](hidden)
                    if training:
                        from_out[i](out)
                        if i:
                            from_hidden[i](hidden)
                        for total, grad, value in zip(gradients, (hidden, out), (x, hidden), strict=True):
                            total.addmm_(grad.T, value, beta=float(group > 0))

    return run


def parts(sizes: Sizes) -> list[int]:
    """Split locations into groups."""
    full, rest = divmod(sizes.locations, GROUP)
    return [GROUP] * full + ([rest] if rest else [])


def in_a_row(runs: list[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for one in runs:
            one()

    return run


def measure_flows(report: Report, variant: Variant, plan: Plan, memory: bool = False) -> None:
    """Measure `sanflow_*`, `gemm_fraction_*` and `gemm_bound_*`, see `benchmarks.speed`."""
    kinds = {"train": training_step, "infer": inference}
    reason = missing("FrEIA")
    if reason:
        names = [f"sanflow_{kind}_{side}{variant.suffix}" for kind in kinds for side in ("eager", "compiled")]
        report.skip(reason, *names, *([f"sanflow_train_memory{variant.suffix}"] if memory else []))
        return
    with using_threads(variant.threads):
        scales = [Scale.make(setting, variant.batch, plan) for setting in settings(variant.backbone)]
        for scale in scales:
            scale.check()
        sides = [forwards(scale, plan.compiled) for scale in scales]
        for kind, make in kinds.items():
            runs = {side: in_a_row([make(*one[side]) for one in sides]) for side in sides[0]}
            runs["gemm"] = in_a_row([products(scale, plan, kind == "train") for scale in scales])
            seconds = in_turns(runs, plan.rounds, plan.device)
            for side in ("eager", "compiled") if plan.compiled else ("eager",):
                theirs = ["freia", "freia compiled"] if side == "compiled" else ["freia"]
                peer = best(seconds, theirs, variant.by)
                found = ratio(seconds, peer, side, variant.by)
                report.ratio(f"sanflow_{kind}_{side}{variant.suffix}", found | {"peer": peer})
                report.ratio(f"gemm_fraction_{kind}_{side}{variant.suffix}", ratio(seconds, "gemm", side, variant.by))
                if side == "eager":
                    report.ratio(f"gemm_bound_{kind}{variant.suffix}", ratio(seconds, "freia", "gemm", variant.by))
        del scales, sides, runs
        gc.collect()
        if memory:
            report.ratio(f"sanflow_train_memory{variant.suffix}", memory_ratio(report, variant, plan))


def memory_ratio(report: Report, variant: Variant, plan: Plan) -> Any:
    """Measure our peak memory of a step over FrEIA's; scales train one after the other, so the largest counts."""
    chosen = settings(variant.backbone)
    ours, theirs = ([*peaks(flow_peaks, side, chosen, variant.batch, plan)] for side in ("eager", "freia"))
    report.row("memory", what="MiB of a SANFlow step by scale", semflow=ours, FrEIA=theirs)
    share = round(max(ours) / max(theirs), 3)
    return {"median": share, "low": share, "high": share}


def flow_peaks(side: str, chosen: Sequence[Setting], batch: int, plan: Plan) -> list[int]:
    """Return the peak bytes of forward and backward for each scale, without parameters and their gradients."""
    found = []
    for setting in chosen:
        module, forward = forwards(Scale.make(setting, batch, plan), compiled=False)[side]
        gradients = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        with watching_memory(plan.device) as above:
            z, log_det = forward()
            (0.5 * z.square().sum() - log_det.sum()).backward()
        found.append(above() - gradients)
        del module, forward, z, log_det
        gc.collect()
    return found
