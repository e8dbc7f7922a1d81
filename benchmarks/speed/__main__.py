"""Speed benchmarks, reported as ratios within one run: `python -m benchmarks.speed [--quick] [--json FILE]`.

Higher is better and above 1 is faster than the other side, except for ratios marked with (-), where lower is better.

sanflow_train_eager, _compiled      FrEIA's time over ours for a training step of SANFlow's flows (`flows`)
sanflow_infer_eager, _compiled      the same for inference
gemm_fraction_train_eager, ...      time of the flows' matrix products over that of the flows; also _infer, _compiled
gemm_bound_train, _infer            FrEIA's time over that of the products, the limit for any flow of this function
sanflow_train_memory (-)            our peak memory of a step over FrEIA's, without parameters and gradients
fastflow_train, fastflow_infer      anomalib's time over ours (`against_anomalib`); also _compiled, and _infer_whole
                                    with the backbone
cflow_infer                         anomalib's time over ours, with its fibers of 64; _best_chunk with its fastest
                                    size; _whole with the backbone
floor_RECIPE_train, _infer          time of the recipe's operations at the rate of a large square product over the
                                    recipe's time, for sanflow, cflow_ad and fastflow (`recipes`)
metrics_vs_sort (-)                 time of all exact pixel metrics over that of `numpy.sort` of the scores
auroc_vs_sort_1e6 (-), aupro_...    the same for one metric, including labeling, at 1e6, 1e7 and 1e8 pixels
auroc_vs_sklearn_1e6, auroc_vs_anomalib_1e6, aupro_vs_anomalib_1e6      the library's time over ours (`metrics`)
synthesis_not_bottleneck            images per second of decoding and synthesis with two workers over those of
                                    training on all threads (`files`)
import_vs_python (-)                CPU time of `import semflow` over that of an empty interpreter (`start`)
help_vs_torch (-)                   CPU time of `semflow --help` over that of `import torch`

Names without a suffix are for WRN-50 at 256 px, batch size 8, one thread, by CPU time. `_batch1`, `_resnet18`,
`_resnet18_batch1` and `_all_threads` (by wall time) are other settings. Each ratio is the median over rounds. The JSON
file has the lowest and highest ratio, the median by the other clock and the peer's setting under `ranges`, absolute
figures under `rows`, and what could not be measured, with the reason, under `skipped`.

`--quick` uses two blocks per scale instead of eight, fewer rounds, pixels and variants, only ResNet-18 for recipes and
files, and compiles only SANFlow's flows. `python -m benchmarks.speed.kernels` compares the fused CPU kernels with plain
operators.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..shared.record import provenance, versions
from .against_anomalib import measure_cflow, measure_fastflow
from .files import measure_files, png_folder
from .flows import Plan, measure_flows
from .metrics import measure_metrics, measure_pixels
from .recipes import measure_recipes
from .start import measure_start
from .timing import Report, Variant, all_threads, no_compiler

__all__ = ["SECTIONS", "main"]

SEED = 0  # for weights and data, which both sides of a comparison share
WIDE, SMALL = "wide_resnet50_2", "resnet18"
HEAD = Variant("", WIDE, 8)
COMPILED = ("sanflow_train_compiled", "sanflow_infer_compiled", "fastflow_train_compiled", "fastflow_infer_compiled")


class Run:
    """Sections of one run, with its options."""

    def __init__(self, quick: bool, device: str, compiled: bool) -> None:
        self.quick, self.device, self.report = quick, device, Report()
        self.blocks, self.rounds = (2, 2) if quick else (8, 5)
        reason = no_compiler() if compiled else "--no-compile was given"
        self.compiled = reason is None
        if reason:
            self.report.skip(reason, *COMPILED)

    def elsewhere(self, *quick: str) -> list[Variant]:
        """Return the variants; in a quick run only those with the given suffixes."""
        found = [Variant("_resnet18", SMALL, 8), Variant("_resnet18_batch1", SMALL, 1), Variant("_batch1", WIDE, 1)]
        if all_threads() > 1:
            found.append(Variant("_all_threads", WIDE, 8, all_threads()))
        else:
            self.report.skip("this process may use one CPU only", "*_all_threads")
        return [variant for variant in found if not self.quick or variant.suffix in quick]

    def flows(self) -> None:
        plan = Plan(self.blocks, self.rounds, self.device, self.compiled)
        measure_flows(self.report, HEAD, plan, memory=True)
        for variant in self.elsewhere("_resnet18", "_all_threads") if self.device == "cpu" else []:
            measure_flows(self.report, variant, plan._replace(compiled=False))

    def fastflow(self) -> None:
        plan = Plan(self.blocks, self.rounds, "cpu", self.compiled and not self.quick)
        if self.quick and self.compiled:
            self.report.skip("--quick: compiling both sides takes minutes", *COMPILED[2:])
        measure_fastflow(self.report, HEAD, plan, whole=not self.quick)
        for variant in self.elsewhere("_resnet18"):
            measure_fastflow(self.report, variant, plan._replace(compiled=False), whole=not self.quick)

    def cflow(self) -> None:
        plan = Plan(self.blocks, self.rounds, "cpu", compiled=False)
        for variant in (HEAD, *self.elsewhere()):
            measure_cflow(self.report, variant, plan, whole=not self.quick)

    def recipes(self) -> None:
        rounds = 2 if self.quick else 3
        if not self.quick:
            measure_recipes(self.report, HEAD, self.blocks, rounds, memory=True)
        for variant in self.elsewhere("_resnet18"):
            measure_recipes(self.report, variant, self.blocks, rounds, memory=not self.quick and variant.threads == 1)

    def metrics(self) -> None:
        measure_metrics(self.report, 3 * 10**6 if self.quick else 3 * 10**7, self.rounds + 1)
        for pixels in (10**6,) if self.quick else (10**6, 10**7, 10**8):
            measure_pixels(self.report, pixels, 3)

    def files(self) -> None:
        with png_folder(8 if self.quick else 24) as folder:
            for suffix, backbone in (("", WIDE), ("_resnet18", SMALL)):
                if suffix or not self.quick:
                    variant = Variant(suffix, backbone, 4, all_threads())
                    measure_files(self.report, variant, folder, self.blocks, 2 if self.quick else 3)

    def start(self) -> None:
        measure_start(self.report, 3 if self.quick else 9)


SECTIONS: dict[str, Callable[[Run], None]] = {
    name: getattr(Run, name) for name in ("flows", "fastflow", "cflow", "recipes", "metrics", "files", "start")
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="five minutes on two cores")
    parser.add_argument("--device", default="cpu", help="where the flows are measured: cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections, all by default")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--json", type=Path, help="file for the ratios, with command, versions and machine")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    run = Run(options.quick, options.device, not options.no_compile)
    seconds = {}
    for name in options.only:
        print(f"\n{name}", flush=True)
        began = time.perf_counter()
        SECTIONS[name](run)
        seconds[name] = round(time.perf_counter() - began, 1)
    print(f"\nseconds: {seconds}, together {sum(seconds.values()):.0f}")
    if options.json:
        command = ["python", "-m", "benchmarks.speed", *(sys.argv[1:] if arguments is None else arguments)]
        found = {
            "ratios": {name: value["median"] for name, value in run.report.ratios.items()},
            "skipped": run.report.skipped,
            "ranges": run.report.ratios,
            "rows": run.report.rows,
            **provenance(command, options.device),
            "versions": versions("anomalib", "FrEIA", "scikit-learn"),
            "seed": SEED,
            "quick": run.quick,
            "blocks": run.blocks,
            "rounds": run.rounds,
            "seconds": seconds,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
