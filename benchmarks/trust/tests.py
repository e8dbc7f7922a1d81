"""Tests run by a command, and what they counted: pytest's own report, with the properties that tests record."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ..shared.record import ROOT

__all__ = ["Case", "FailedTestsError", "read_report", "run_tests"]


class FailedTestsError(Exception):
    """Tests that did not pass, or that could not be run: there are no figures then."""


@dataclass(frozen=True)
class Case:
    """One test: its function, what became of it, and what it recorded.

    Args:
        test: name of the function.
        outcome: `passed` or `skipped`.
        properties: values by name, as text; of a name that was recorded twice the last.
        reason: why it was skipped.
    """

    test: str
    outcome: str
    properties: dict[str, str]
    reason: str = ""


def run_tests(places: Sequence[str], root: Path = ROOT) -> list[Case]:
    """Run test files (or single tests), slow ones too, with one thread.

    Those of a folder go to one pytest: each folder's conftest is imported under the same name.

    Raises:
        FailedTestsError: one of them fails, or there is none.
    """
    cases = []
    for _, group in groupby(places, key=lambda place: Path(place.partition("::")[0]).parent):
        cases += _run(list(group), root)
    return cases


def _run(places: Sequence[str], root: Path) -> list[Case]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *places]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if not report.is_file():
            said = (done.stderr or done.stdout).strip()
            raise FailedTestsError(f"pytest ended with {done.returncode}: {said[-500:]}")
        return read_report(report)


def read_report(path: Path) -> list[Case]:
    """The tests of a JUnit report.

    Raises:
        FailedTestsError: it holds a failure or an error, or no test.
    """
    cases, failed = [], []
    for case in ElementTree.parse(path).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(str(case.get("name")))
        cases.append(
            Case(
                str(case.get("name")).partition("[")[0],
                "passed" if skipped is None else "skipped",
                {str(p.get("name")): str(p.get("value")) for p in case.iter("property")},
                "" if skipped is None else str(skipped.get("message")),
            )
        )
    if failed:
        raise FailedTestsError(f"{len(failed)} of {len(cases)} tests fail: {', '.join(failed[:5])}")
    if not cases:
        raise FailedTestsError("there is no test")
    return cases
