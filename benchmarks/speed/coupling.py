"""Speed of one conditional coupling block against FrEIA 0.2's AllInOneBlock in the form that SANFlow published.

    python -m benchmarks.speed.coupling [--batch 8 --rounds 5 --threads 1 --json coupling.json]

Both sides compute the same function, which is checked first: affine coupling, global affine, hard permutation. FrEIA's
block concatenates the position code to every location and permutes by a matrix; ours uses two tables of the code and an
index. FrEIA's condition is prepared beforehand and not timed. The sides take turns within a round; the results are
medians over rounds, and the median of the ratios.

The floor is the time of the block's matrix products. With N = B H W locations, P passive and A active channels and
h = 2 (P + D) hidden units they take 2 N h (P + 2 A) floating-point operations forward and three times as many in
training; the code's own part, (H + W) h D, and elementwise operations are small. A third side runs only matrix products
of these sizes. The published form has more operations, 2 N h (P + D + 2 A) + 2 N C^2.

    python -m pip install "semflow[bench]"   # FrEIA is an extra
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.flows import AffineCoupling, FlowSequence, GlobalAffine, HardPermutation
from semflow.functional import to_locations
from semflow.nn import SinusoidalPosition2d

from ..shared.record import provenance, versions


class Setting(NamedTuple):
    """One scale of a backbone: C channels on a map of H = W = size, and a code of D channels."""

    backbone: str
    channels: int
    size: int
    code: int


SETTINGS = [
    *(Setting("wide_resnet50_2", c, size, 512) for c, size in ((512, 32), (1024, 16), (2048, 8))),
    *(Setting("efficientnet_lite0", c, size, d) for d in (128, 512) for c, size in ((40, 32), (112, 16), (320, 8))),
]

Pass = Callable[[], object]
SEED = 0


class Sizes(NamedTuple):
    """Sizes of the matrix products of a block."""

    locations: int
    passive: int
    active: int
    hidden: int

    @classmethod
    def of(cls, setting: Setting, batch: int) -> "Sizes":
        passive = setting.channels - setting.channels // 2
        locations = batch * setting.size**2
        return cls(locations, passive, setting.channels // 2, 2 * (passive + setting.code))

    def flops(self, training: bool) -> float:
        return 2.0 * self.locations * self.hidden * (self.passive + 2 * self.active) * (3 if training else 1)


def make_freia(setting: Setting) -> Any:
    try:
        from FrEIA.modules import AllInOneBlock
    except ImportError:
        sys.exit('FrEIA must be installed for this comparison, but is not: python -m pip install "semflow[bench]"')

    def subnet(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))

    return AllInOneBlock(
        [(setting.channels,)],
        dims_c=[(setting.code,)],
        subnet_constructor=subnet,
        affine_clamping=1.9,
        global_affine_type="SOFTPLUS",
        permute_soft=False,
    )


def make_ours(setting: Setting, freia: Any) -> FlowSequence:
    """Return the same function, with FrEIA's parameters split where it concatenates."""
    coupling = AffineCoupling(setting.channels, context_channels=setting.code)
    permutation = HardPermutation(setting.channels)
    passive = coupling.sizes[0]
    first, _, second = freia.subnet
    with torch.no_grad():
        coupling.subnet.weight_x.copy_(first.weight[:, :passive])
        coupling.subnet.weight_context.copy_(first.weight[:, passive:])
        coupling.subnet.bias.copy_(first.bias)
    coupling.subnet.output.load_state_dict(second.state_dict())
    permutation.load_state_dict({"index": freia.w_perm.argmax(1)})
    return FlowSequence([coupling, GlobalAffine(setting.channels), permutation])


def passes(setting: Setting, batch: int, training: bool) -> dict[str, Pass]:
    """Return one pass of each side over the same features; in training x has a gradient, as within a stack."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(batch, setting.channels, setting.size, setting.size, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    rows = to_locations(x)
    tables = SinusoidalPosition2d(setting.code)(setting.size, setting.size)
    condition = to_locations(tables.dense().expand(batch, -1, -1, -1)).contiguous()
    freia = make_freia(setting)
    ours = make_ours(setting, freia)
    agree(ours(x, tables), freia([rows], [condition]))

    def train(forward: Callable[[], tuple[Tensor, Tensor]], module: nn.Module, leaf: Tensor) -> Pass:
        def run() -> None:
            leaf.grad = None
            module.zero_grad(set_to_none=True)
            z, log_det = forward()
            (0.5 * z.square().sum() - log_det.sum()).backward()

        return run

    def infer(forward: Callable[[], tuple[Tensor, Tensor]]) -> Pass:
        def run() -> None:
            with torch.inference_mode():
                forward()

        return run

    def freia_forward() -> tuple[Tensor, Tensor]:
        (z,), log_det = freia([rows], [condition])
        return z, log_det

    def our_forward() -> tuple[Tensor, Tensor]:
        z, log_det = ours(x, tables)
        return z, log_det

    products = matrix_products(Sizes.of(setting, batch), training)
    if not training:
        return {"semflow": infer(our_forward), "freia": infer(freia_forward), "gemm": products}
    x.requires_grad_()
    rows = rows.detach().clone().requires_grad_()
    return {"semflow": train(our_forward, ours, x), "freia": train(freia_forward, freia, rows), "gemm": products}


def agree(ours: tuple[Tensor, Tensor], theirs: tuple[tuple[Tensor], Tensor]) -> None:
    torch.testing.assert_close(to_locations(ours[0]), theirs[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1].flatten(), theirs[1], rtol=1e-4, atol=1e-3)


def matrix_products(sizes: Sizes, training: bool) -> Pass:
    x, hidden = torch.randn(sizes.locations, sizes.passive), torch.randn(sizes.locations, sizes.hidden)
    first, second = torch.randn(sizes.hidden, sizes.passive), torch.randn(2 * sizes.active, sizes.hidden)
    out = torch.randn(sizes.locations, 2 * sizes.active)

    def run() -> None:
        with torch.inference_mode():
            F.linear(x, first)
            F.linear(hidden, second)
            if training:
                for gradient, weight, given in ((out, second, hidden), (hidden, first, x)):
                    gradient.T @ given
                    gradient @ weight

    return run


def measure(runs: dict[str, Pass], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of a pass of each side, one entry per round; sides take turns in starting a round."""
    repeats = {}
    for name, run in runs.items():
        run()  # allocate memory and create oneDNN's primitives
        began = time.perf_counter()
        run()
        repeats[name] = max(1, round(0.03 / (time.perf_counter() - began)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        names = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for name in names:
            began = time.perf_counter()
            for _ in range(repeats[name]):
                runs[name]()
            seconds[name].append((time.perf_counter() - began) / repeats[name])
    return seconds


def row(setting: Setting, batch: int, rounds: int, training: bool) -> dict[str, Any]:
    seconds = measure(passes(setting, batch, training), rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["semflow"], seconds["freia"], strict=True))
    flops = Sizes.of(setting, batch).flops(training)
    return {
        **setting._asdict(),
        "batch": batch,
        "pass": "forward + backward" if training else "inference",
        **{f"{name}_seconds": round(value, 6) for name, value in medians.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "floor_gflop": round(flops / 1e9, 3),
        "semflow_gflop_per_s": round(flops / medians["semflow"] / 1e9, 1),
        "gemm_gflop_per_s": round(flops / medians["gemm"] / 1e9, 1),
        "of_floor": round(medians["gemm"] / medians["semflow"], 3),
    }


def total(rows: list[dict[str, Any]], backbone: str, code: int, training: bool) -> float | None:
    """Return the ratio of the sums of seconds over all scales of a backbone."""
    kind = "forward + backward" if training else "inference"
    chosen = [r for r in rows if (r["backbone"], r["code"], r["pass"]) == (backbone, code, kind)]
    return sum(r["freia_seconds"] for r in chosen) / sum(r["semflow_seconds"] for r in chosen) if chosen else None


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed.coupling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backbone", choices=sorted({s.backbone for s in SETTINGS}), help="all by default")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    settings = [s for s in SETTINGS if options.backbone in (None, s.backbone)]
    make_freia(settings[0])  # fail early if the extra is missing
    head = {
        **provenance(["python", "-m", "benchmarks.speed.coupling", *sys.argv[1:]]),
        "versions": versions("FrEIA"),
        "seed": SEED,
        "threads": options.threads,
        "rounds": options.rounds,
    }
    print("\n".join(f"{key}: {value}" for key, value in head.items()))
    print(f"\n{'backbone':18} {'C':>4} {'H=W':>4} {'D':>4} {'B':>3}  {'pass':18}", end="")
    print(f" {'FrEIA':>9} {'semflow':>9}  ratio (range)         GFLOP/s of plain GEMM's")
    rows = []
    for training in (True, False):
        for setting in settings:
            rows.append(r := row(setting, options.batch, options.rounds, training))
            low, high = r["ratio_range"]
            print(
                f"{setting.backbone:18} {setting.channels:4} {setting.size:4} {setting.code:4} {options.batch:3}  "
                f"{r['pass']:18} {1e3 * r['freia_seconds']:6.1f} ms {1e3 * r['semflow_seconds']:6.1f} ms "
                f"{r['ratio']:5.2f} x ({low:.2f} to {high:.2f})  {r['semflow_gflop_per_s']:6.1f} of "
                f"{r['gemm_gflop_per_s']:6.1f} ({r['of_floor']:.0%})",
                flush=True,
            )
    totals = {}
    print()
    for backbone, code in dict.fromkeys((s.backbone, s.code) for s in settings):
        for training in (True, False):
            name = f"{backbone}, D = {code}, {'forward + backward' if training else 'inference'}"
            totals[name] = round(total(rows, backbone, code, training) or 0.0, 3)
            print(f"{name}, all scales: {totals[name]:.2f} x")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**head, "rows": rows, "totals": totals}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
