"""Run the tests of the library's promises, and write the figures that they record.

    python -m benchmarks.trust                   # all parts: results/trust.json and the pages
    python -m benchmarks.trust --only kills      # run one part again
    python -m benchmarks.trust --page            # only write the pages

Each part is a set of test files. Its tests record figures, such as the number of survived kills or the largest
difference between a detector and its exported file; if a test fails, the part keeps its old figures. False-alarm rates
on real images are measured by `benchmarks.calibration` and read from results/calibration.json.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..shared.record import ROOT, provenance, write_json
from .page import PAGES, write
from .parts import PARTS
from .tests import FailedTestsError, run_tests

RESULTS = ROOT / "benchmarks" / "results"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a test fails."""
    given = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.trust", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    what.add_argument("--page", action="store_true", help="run no tests")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args(given)
    for name in [] if options.page else options.only:
        try:
            part = count(name, ["python", "-m", "benchmarks.trust", *given])
        except FailedTestsError as error:
            print(f"error: {name}: {error}; its figures are not changed", file=sys.stderr)
            return 1
        file = options.results / "trust.json"
        parts = json.loads(file.read_text())["parts"] if file.is_file() else {}
        parts[name] = part
        write_json(file, {"parts": {key: parts[key] for key in PARTS if key in parts}})
        print(json.dumps({name: part["figures"]}, indent=1), flush=True)
    if not (options.results / "calibration.json").is_file():
        print(f"error: {options.results} has no calibration.json; run benchmarks.calibration first", file=sys.stderr)
        return 1
    write(PAGES, kept(options.results))
    return 0


def count(name: str, command: Sequence[str]) -> dict[str, Any]:
    """Run a part, and return its figures with their provenance."""
    began = time.monotonic()
    cases = run_tests(PARTS[name].tests)
    return {
        **provenance(command),
        "seeds": "fixed in the tests",
        "seconds": round(time.monotonic() - began, 1),
        "passed": sum(case.outcome == "passed" for case in cases),
        "skipped": dict(Counter(case.reason for case in cases if case.outcome == "skipped")),
        "figures": PARTS[name].figures(cases),
    }


def kept(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return all kept parts, and the rates on real images as `real`."""
    parts: dict[str, dict[str, Any]] = {"real": json.loads((results / "calibration.json").read_text())}
    return {**parts, **json.loads((results / "trust.json").read_text())["parts"]}


if __name__ == "__main__":
    raise SystemExit(main())
