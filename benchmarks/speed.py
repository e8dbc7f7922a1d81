"""How fast it is, as ratios within one run: `python -m benchmarks.speed [--quick] [--device cpu] [--json FILE]`.

sanflow_train_eager, _compiled    FrEIA's time over ours for a training step of SANFlow's flows (see `speed_flows`)
sanflow_infer_eager, _compiled    the same for inference
gemm_fraction_train_eager, ...    time of the flows' matrix products alone over theirs; also _infer
sanflow_train_memory              our peak memory of a step over FrEIA's, parameters and gradients aside
metrics_vs_sort                   time of all exact pixel metrics over that of `numpy.sort` of the scores

Above one means faster than the other, save in the last two, where less is better. Each is the median over the rounds,
and the JSON file holds its range as well. `--quick` takes two blocks a scale for eight, and fewer rounds and pixels.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from .record import provenance
from .speed_flows import Plan, measure_flows
from .speed_metrics import measure_metrics

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five minutes on two cores")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave out what needs a C++ compiler")
    parser.add_argument("--json", type=Path, help="file for the ratios, with command, versions and machine")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plan = Plan(2 if options.quick else 8, 8, 3 if options.quick else 5, options.device)
    found = measure_flows(plan._replace(compiled=not options.no_compile))
    found |= measure_metrics(3 * 10**6 if options.quick else 3 * 10**7, plan.rounds)
    for name, value in found.items():
        print(f"{name:30} {value['median']:6.3f}   ({value['low']:.3f} to {value['high']:.3f})")
    if options.json:
        command = ["python", "-m", "benchmarks.speed", *(sys.argv[1:] if arguments is None else arguments)]
        head = {**provenance(command, options.device), "threads": options.threads, "plan": plan._asdict()}
        ratios = {name: value["median"] for name, value in found.items()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"ratios": ratios, "ranges": found, **head}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
