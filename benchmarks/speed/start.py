"""Start-up time of `import semflow` and `semflow --help` in fresh processes, compared with Python and torch."""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from .timing import Ratio, Report

__all__ = ["measure_start", "once"]

COMMANDS = {
    "python": ["-c", "pass"],
    "import semflow": ["-c", "import semflow"],
    "semflow --help": ["-m", "semflow", "--help"],
    "import torch": ["-c", "import torch"],
}

LAUNCHER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - began
if status:
    sys.exit(f"{sys.argv[1:]} ended with status {os.waitstatus_to_exitcode(status)}")
print(json.dumps([usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024]))
"""


def measure_start(report: Report, rounds: int) -> None:
    """Measure rows `start` (medians), `import_vs_python` and `help_vs_torch`."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
    for arguments in COMMANDS.values():
        once(arguments)  # fill the page cache and compile to bytecode
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            found[name].append(once(arguments))
    for name, runs in found.items():
        cpu, wall, mib = (statistics.median(values) for values in zip(*runs, strict=True))
        report.row("start", what=name, cpu_s=round(cpu, 3), wall_s=round(wall, 3), peak_mib=round(mib, 1))
    report.ratio("import_vs_python", over(found["import semflow"], found["python"]))
    report.ratio("help_vs_torch", over(found["semflow --help"], found["import torch"]))


def over(of: list[tuple[float, float, float]], to: list[tuple[float, float, float]]) -> Ratio:
    values = sorted(a[0] / b[0] for a, b in zip(of, to, strict=True))
    found = (statistics.median(values), values[0], values[-1])
    return dict(zip(("median", "low", "high"), (round(value, 3) for value in found), strict=True))


def once(
    arguments: Sequence[str], python: str = sys.executable, environment: Mapping[str, str] | None = None
) -> tuple[float, float, float]:
    """Return CPU seconds, wall seconds and peak MiB of a fresh interpreter, measured by a small parent process.

    A process begins with the memory of the one that starts it, and this one's would count. CPU seconds are those of all
    threads and of processes that it started and waited for; the peak is that of the largest of them.
    """
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, python, *arguments],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    cpu, wall, mib = json.loads(done.stdout)
    return cpu, wall, mib
