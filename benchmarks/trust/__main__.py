"""The figures of trust: runs the tests that keep a promise, and writes what they counted.

    python -m benchmarks.trust                   # everything, some minutes: results/trust.json and the pages of docs
    python -m benchmarks.trust --only kills      # one part anew, the others as they are kept
    python -m benchmarks.trust --page            # the pages anew, from what is kept

A part is a choice of tests (`parts.py`). They record what they see, such as the kills that were survived or the
largest difference between a detector and its exported file; a test that fails leaves no figures. Rates on real images
are those of `benchmarks.calibration`, which takes longer and is run by itself; they are read from
results/calibration.json. Seeds are fixed in the tests.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..shared.record import ROOT, provenance
from .page import PAGES, write
from .parts import PARTS
from .tests import FailedTestsError, run_tests

__all__ = ["RESULTS", "kept", "main"]

RESULTS = ROOT / "benchmarks" / "results"


def main(words: Sequence[str] | None = None) -> int:
    """Count, keep, and write the pages; exit code 1 when a test fails."""
    given = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(prog="benchmarks.trust", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to count anew")
    what.add_argument("--page", action="store_true", help="count nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args(given)
    for name in [] if options.page else options.only:
        try:
            part = count(name, ["python", "-m", "benchmarks.trust", *given])
        except FailedTestsError as error:
            print(f"error: {name}: {error}; no figures of it are written", file=sys.stderr)
            return 1
        file = options.results / "trust.json"
        parts = json.loads(file.read_text())["parts"] if file.is_file() else {}
        parts[name] = part
        ordered = {key: parts[key] for key in PARTS if key in parts}
        file.write_text(json.dumps({"parts": ordered}, indent=1) + "\n")
        print(json.dumps({name: part["figures"]}, indent=1), flush=True)
    if not (options.results / "calibration.json").is_file():
        print(f"error: {options.results} holds no calibration.json; run benchmarks.calibration first", file=sys.stderr)
        return 1
    write(PAGES, kept(options.results))
    return 0


def count(name: str, command: Sequence[str]) -> dict[str, Any]:
    """The figures of a part, with what makes them believable."""
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
    """All parts that are kept, the rates on real images as `real`."""
    parts: dict[str, dict[str, Any]] = {"real": json.loads((results / "calibration.json").read_text())}
    return {**parts, **json.loads((results / "trust.json").read_text())["parts"]}


if __name__ == "__main__":
    raise SystemExit(main())
