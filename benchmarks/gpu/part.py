"""One part in its own process, started by the runner: `python -m benchmarks.gpu.part NAME --output DIR --seconds S`."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from .parts import PARTS
from .plan import Plan
from .record import Record, describe


def main(words: list[str] | None = None) -> int:
    """Measure one part; the status is 0 unless it could not go on."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.part")
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--command", default="")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(words)
    head = {"part": options.name, "rehearsal": options.rehearse, **described(options.command, options.rehearse)}
    record = Record(options.output / f"{options.name}.json", head, options.seconds)
    if not options.rehearse and "device" not in head:
        record.finish("failed", "torch finds no CUDA device; --rehearse needs none")
        return 1
    plan = Plan("cpu" if options.rehearse else "cuda", options.rehearse, options.data, record)
    try:
        importlib.import_module(f".{options.name}", __package__).measure(plan)
    except Exception as error:
        record.finish("failed", describe(error))
        raise
    record.finish()
    return 0


def described(command: str, rehearse: bool) -> dict[str, Any]:
    """Return command, commit, versions and machine; on a GPU also its name, memory, driver and libraries."""
    import torch

    from ..shared.record import provenance

    packages = ["torchvision", "triton", "scipy", "safetensors", "FrEIA", "anomalib"]
    found = provenance([], "cpu", packages) | {"command": command}
    if rehearse or not torch.cuda.is_available():
        return found
    about = torch.cuda.get_device_properties(0)
    return found | {
        "device": about.name,
        "memory_gib": round(about.total_memory / 2**30, 1),
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }


def driver() -> str:
    """Return the version of the driver, or why it is not known."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"unknown ({type(error).__name__})"


if __name__ == "__main__":
    sys.exit(main())
