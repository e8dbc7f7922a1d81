"""The tests marked `cuda`, each outcome written at once."""

import os
from pathlib import Path

import pytest

from .plan import Plan

ROOT = Path(__file__).resolve().parents[2]


class Outcomes:
    """Plugin of pytest that adds a row for each test."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.counts = plan, {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        self.counts[report.outcome] += 1
        values = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.outcome != "passed":
            values["reason"] = str(report.longreprtext or report.longrepr)[-2000:]
        self.plan.record.row(report.nodeid, **values)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.plan.record.skip(report.nodeid, str(report.longreprtext)[-2000:])


def measure(plan: Plan) -> None:
    if plan.small:
        os.environ["SEMFLOW_CUDA"] = "cpu"  # the tests then run there, see tests/helpers/devices.py
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")]
    outcomes = Outcomes(plan)
    words = ["-m", "cuda and not slow" if plan.small else "cuda", "-q", "--no-header", "-p", "no:cacheprovider"]
    words += ["-p", "no:randomly", "-p", "no:xdist", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    code = pytest.main([*words, *map(str, files)], plugins=[outcomes])
    plan.record.row("all", exit=int(code), files=len(files), **outcomes.counts)
