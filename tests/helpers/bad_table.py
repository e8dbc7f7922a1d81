"""Table of bad input and its Markdown page: `PYTHONPATH=tests python -m helpers.bad_table --write`."""

import sys
from pathlib import Path

from helpers.bad_files import FILES
from helpers.bad_folders import FOLDERS
from helpers.bad_options import OPTIONS
from helpers.bad_rows import Observed, Refused, Row, Workspace
from helpers.bad_tensors import TENSORS

TABLE: dict[str, list[Row]] = {
    "Files": FILES,
    "Tensors": TENSORS,
    "Options": OPTIONS,
    "Data sets and commands": FOLDERS,
}
COUNTED = {"Tensors": "bad_tensors.py", "Options": "bad_options.py"}  # their errors are not listed on the page
PAGE = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "trust.md"
BEGIN, END = "<!-- bad input: begin -->\n", "<!-- bad input: end -->"


def trained_run(folder: Path) -> Path:
    """Train a run directory for the rows."""
    workspace = Workspace(folder, folder, None)
    workspace.dataset(train=8)
    workspace.fit()
    return folder / "run"


def wrong(row: Row, observed: Observed) -> str:
    """Return how the outcome differs from the row, or ""."""
    expected = row.expected
    if not isinstance(expected, Refused):
        same = observed.error is None and observed.value == expected.equals
        return "" if same else f"expected {expected.equals!r}, but got {observed.error or observed.value!r}"
    if observed.error is None:
        return f"expected {expected.kind.__name__}, but it works: {observed.value!r}"
    message = str(observed.error)
    if type(observed.error) is not expected.kind:
        return f"expected {expected.kind.__name__}, but got {type(observed.error).__name__}: {message}"
    missing = [word for word in expected.words if word not in message]
    lines = [line for line in message.splitlines() if not line.startswith("scoring ")]
    return f"{missing} missing in: {message}" if missing or len(lines) != 1 else ""


def page_table() -> str:
    """Return the tables as Markdown: the input by result, and only counts of invalid arguments."""
    lines = []
    for group, rows in TABLE.items():
        inputs: dict[str, list[str]] = {}
        errors: dict[str, list[str]] = {}
        for row in rows:
            if isinstance(row.expected, Refused):
                kind = row.expected.kind.__name__
                errors.setdefault("exit code 2" if kind == "CommandError" else f"`{kind}`", []).append(row.name)
            else:
                inputs.setdefault(row.expected.description, []).append(row.name)
        if group not in COUNTED:
            inputs.update(errors)
        lines += [f"### {group}", "", "| result | input |", "| --- | --- |"]
        lines += [f"| {result} | {'; '.join(names)} |" for result, names in inputs.items()]
        if group in COUNTED:
            counts = ", ".join(f"{len(names)} {error}" for error, names in errors.items())
            lines += ["", f"Invalid input (`tests/helpers/{COUNTED[group]}`), kinds by result: {counts}."]
        lines.append("")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    """Print the table, or insert it into results/trust.md with --write."""
    if "--write" not in words:
        print(page_table())
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{page_table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
