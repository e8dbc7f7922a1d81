"""Everything that needs a GPU, in one command, `benchmarks/gpu.sh`.

Its parts, in their order:

tests      the tests marked `cuda`
scores     scores of every recipe on the GPU against those on the CPU, in float32, TF32 and bfloat16
inference  uint8 images in host memory to scores, SANFlow on WRN-50 at 256 px, batches of 32, 8 and 1: eager, CUDA
           graphs and compiled, against the published formulation (FrEIA's blocks), and anomalib's models if installed
training   a step of the trainer, against the same
memory     PatchCore: fit, coreset of 327,680 x 1,536 to 10 %, search
screw      80 epochs in seconds, and image AUROC in bfloat16 against float32 over three seeds
profiles   the kernels that take the time, and the gaps between them

Each part is a process with a limit of time, and writes its file after every measurement: DIR/PART.json with device,
driver, versions and command, and DIR/report.md over all of them, with the targets. Parts that are done are skipped, so
an interrupted run continues. `--rehearse` runs all parts on the CPU at tiny sizes, to find mistakes before a GPU is at
hand. On a machine with network, `--pack DIR` downloads the packages that the other machine may lack; there,
`--wheels DIR` installs what is missing, into a temporary folder.
"""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

from .parts import PARTS
from .runner import ROOT, Options, run
from .wheels import PYTHONS, install, pack


def main(words: list[str] | None = None) -> int:
    """Run the command; return 0 if all parts are done."""
    parser = argparse.ArgumentParser(
        "benchmarks/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="time of all parts together (10)")
    parser.add_argument("--output", type=Path, help="folder for results (benchmarks/results/gpu)")
    parser.add_argument("--data", type=Path, help="a category of MVTec AD, such as mvtec/screw; without it, no AUROC")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="parts, not all")
    parser.add_argument("--again", action="store_true", help="measure parts again that are done")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes on the CPU; results go to a temporary folder"
    )
    parser.add_argument("--wheels", type=Path, help="folder made by --pack, from which missing packages are installed")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="download the wheels into DIR, and nothing else")
    parser.add_argument("--python", nargs="+", default=list(PYTHONS), help="versions of Python for --pack")
    options = parser.parse_args(words)
    if options.pack:
        pack(options.pack, options.python)
        return 0
    command = ["benchmarks/gpu.sh", *(sys.argv[1:] if words is None else words)]
    with tempfile.TemporaryDirectory(prefix="semflow-gpu-") as name:
        if options.wheels:
            for problem in install(options.wheels.resolve(), Path(name, "site")):
                print(f"not installed: {problem}")
            sys.path.append(str(Path(name, "site")))
            importlib.invalidate_caches()
            paths = [os.environ.get("PYTHONPATH", ""), str(Path(name, "site"))]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        kept = (
            Path(tempfile.mkdtemp(prefix="semflow-rehearsal-")) if options.rehearse else ROOT / "benchmarks/results/gpu"
        )
        output = (options.output or kept).resolve()
        data = options.data.resolve() if options.data else None
        if data and not (data / "train/good").is_dir():
            parser.error(f"--data must be a category of MVTec AD, with a folder train/good, but got {options.data}")
        given = Options(options.minutes, output, data, options.again, options.rehearse)
        done = run(given, [part for part in PARTS if part in options.only], command)
    print(
        f"\n{(output / 'report.md').read_text('utf-8') if (output / 'report.md').exists() else ''}\n{output}/report.md"
    )
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
