"""Speed of the fused CPU kernels against the composition of plain operators that they replace.

    python -m benchmarks.speed.kernels [--rounds 5 --batch 8 --json benchmarks/results/kernels.json]

Both sides are the same flow with the same parameters, once under `semflow.flows.fused_kernels(True)` and once under
`fused_kernels(False)`. The flows have the channels and map sizes of three backbones at 256 px:

- `location`: two of SANFlow's conditional blocks, at strides 8, 16 and 32
- `convolution`: four of FastFlow's blocks with 3x3 and 1x1 kernels in turn, at strides 4, 8 and 16
- `location, compiled`: under `torch.compile`, which never uses the kernel of convolutions

The sides take turns within a round, on one thread, by CPU time. A ratio is the time of the composition over the time
of the fused side, so above 1 the kernel is faster; `totals` are over all scales of a backbone. Every ratio is the
median over the rounds, with the lowest and the highest.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semflow.flows import FlowSequence, coupling_stack, fused_kernels
from semflow.nn import ConvSubnet, LocationSubnet, PositionTables, SinusoidalPosition2d, SubnetFactory

from ..shared.record import provenance
from .timing import Seconds, in_turns, no_compiler, using_threads

# Channels of the feature maps by backbone, at strides 4, 8, 16 and 32; and channels of SANFlow's position code.
CHANNELS = {
    "wide_resnet50_2": (256, 512, 1024, 2048),
    "resnet18": (64, 128, 256, 512),
    "efficientnet_lite0": (24, 40, 112, 320),
}
CODE = {"wide_resnet50_2": 512, "resnet18": 512, "efficientnet_lite0": 128}
IMAGE_SIZE, STRIDES = 256, (4, 8, 16, 32)
SUBNETS: dict[str, tuple[SubnetFactory, ...]] = {
    "location": (LocationSubnet, LocationSubnet),
    "convolution": (ConvSubnet, partial(ConvSubnet, kernel=1)) * 2,
}


class Case(NamedTuple):
    """A flow for one scale of a backbone, and how it is run."""

    kernel: str
    backbone: str
    channels: int
    size: int
    compiled: bool

    @property
    def name(self) -> str:
        return self.kernel + ", compiled" * self.compiled


def cases(backbones: list[str], compiled: bool) -> Iterator[Case]:
    kinds = [*((kernel, False) for kernel in SUBNETS), *[("location", True)] * compiled]
    for kernel, compile_it in kinds:
        for backbone in backbones:
            scales = list(zip(CHANNELS[backbone], STRIDES, strict=True))
            for channels, stride in scales[1:] if kernel == "location" else scales[:-1]:
                yield Case(kernel, backbone, channels, IMAGE_SIZE // stride, compile_it)


def make_flow(case: Case) -> tuple[FlowSequence, PositionTables | None]:
    subnets, code = SUBNETS[case.kernel], CODE[case.backbone] if case.kernel == "location" else 0
    flow = coupling_stack(case.channels, len(subnets), subnets, context_channels=code, clamp=1.9 if code else 2.0)
    return flow, SinusoidalPosition2d(code)(case.size, case.size) if code else None


def sides(case: Case, batch: int, training: bool) -> dict[str, Callable[[], object]]:
    flow, context = make_flow(case)
    x = torch.randn(batch, case.channels, case.size, case.size)
    if case.kernel == "location":  # the memory layout of the features in SANFlow; FastFlow normalizes them
        x = x.contiguous(memory_format=torch.channels_last)

    def make(fused: bool, onednn: bool = True) -> Callable[[], object]:
        forward: Callable[..., tuple[Tensor, Tensor]] = torch.compile(flow) if case.compiled else flow

        def run() -> tuple[Tensor, ...]:
            with fused_kernels(fused), nullcontext() if onednn else torch.backends.mkldnn.flags(enabled=False):
                if not training:
                    with torch.inference_mode():
                        return forward(x, context)
                flow.zero_grad(set_to_none=True)
                z, log_det = forward(x, context)
                (0.5 * z.square().sum() - log_det.sum()).backward()
                return z.detach(), log_det.detach()

        return run

    runs = {"fused": make(True), "composition": make(False)}
    for one, other in zip(runs["fused"](), runs["composition"](), strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    if case.kernel == "location" and not case.compiled and torch.backends.cpu.get_cpu_capability() == "AVX512":
        runs["fused without oneDNN"] = make(True, onednn=False)
    return runs


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


def ratios(found: list[dict[str, list[Seconds]]]) -> dict[str, dict[str, float]]:
    """Return the time of each other side over that of the fused side, summed over scales, for each round."""
    per_side = {
        side: [sum(scale[side][turn].cpu for scale in found) for turn in range(len(found[0][side]))]
        for side in found[0]
    }
    fused = per_side.pop("fused")
    return {side: summary([b / a for a, b in zip(fused, times, strict=True)]) for side, times in per_side.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbones", nargs="+", choices=list(CHANNELS), default=list(CHANNELS))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args()
    torch.manual_seed(0)
    head = provenance(["python", "-m", "benchmarks.speed.kernels", *sys.argv[1:]])
    found: dict[tuple[str, str, str], list[dict[str, list[Seconds]]]] = {}
    rows: list[dict[str, Any]] = []
    with using_threads(1):
        for case in cases(options.backbones, not options.no_compile and no_compiler() is None):
            for kind, training in (("training step", True), ("inference", False)):
                torch.compiler.reset()
                seconds = in_turns(sides(case, options.batch, training), options.rounds, least=0.1)
                found.setdefault((case.name, case.backbone, kind), []).append(seconds)
                milliseconds = {side: summary([1e3 * s.cpu for s in times]) for side, times in seconds.items()}
                place = {"kernel": case.name, "backbone": case.backbone, "channels": case.channels, "size": case.size}
                rows.append({**place, "pass": kind, "ratios": ratios([seconds]), "milliseconds": milliseconds})
                print(*place.values(), kind, ratios([seconds]), flush=True)
    totals = [
        {"kernel": kernel, "backbone": backbone, "pass": kind, "ratios": ratios(scales)}
        for (kernel, backbone, kind), scales in found.items()
    ]
    for total in totals:
        print(total)
    if options.json:
        record = {
            **head,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": 1,
            "batch": options.batch,
            "rounds": options.rounds,
            "totals": totals,
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
