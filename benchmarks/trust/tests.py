"""Runs of pytest, and the properties that the tests record."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..shared.record import ROOT


class FailedTestsError(Exception):
    """Tests failed or could not be run, so there are no figures."""


@dataclass(frozen=True)
class Case:
    """The outcome of one test.

    Args:
        module: name of its file, without folders and suffix.
        test: name of the function.
        outcome: `passed` or `skipped`.
        properties: recorded values by name, as text; of a name recorded twice the last value.
        reason: why it was skipped.
    """

    module: str
    test: str
    outcome: str
    properties: dict[str, str]
    reason: str = ""


def run_tests(places: Sequence[str], root: Path = ROOT) -> list[Case]:
    """Run test files or folders, including slow tests, with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", "-p", "no:randomly", *options, *places]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if not report.is_file():
            output = (done.stderr or done.stdout).strip()
            raise FailedTestsError(f"pytest exited with {done.returncode}: {output[-500:]}")
        return read_report(report)


def read_report(path: Path) -> list[Case]:
    """Return the tests of a JUnit report."""
    cases, failed = [], []
    for case in ElementTree.parse(path).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(str(case.get("name")))
        cases.append(
            Case(
                Path(str(case.get("file"))).stem,
                str(case.get("name")).partition("[")[0],
                "passed" if skipped is None else "skipped",
                {str(p.get("name")): str(p.get("value")) for p in case.iter("property")},
                "" if skipped is None else str(skipped.get("message")),
            )
        )
    if failed:
        raise FailedTestsError(f"{len(failed)} of {len(cases)} tests fail: {', '.join(failed[:5])}")
    if not cases:
        raise FailedTestsError("there are no tests")
    return cases
