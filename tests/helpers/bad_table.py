"""The table of bad input, and what it gives as Markdown: `python tests/bad_input/bad_table.py`."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from helpers.bad_files import FILES
from helpers.bad_folders import FOLDERS
from helpers.bad_options import OPTIONS
from helpers.bad_rows import CommandError, Observed, Refused, Room, Row, observe
from helpers.bad_tensors import TENSORS
from semflow.recipes import load

TABLE: dict[str, list[Row]] = {
    "Files": FILES,
    "Tensors": TENSORS,
    "Options": OPTIONS,
    "Data sets and commands": FOLDERS,
}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "robustness.md"
BEGIN, END = "<!-- bad input: begin -->\n", "<!-- bad input: end -->\n"


def trained_run(folder: Path) -> Path:
    """A run directory to predict with."""
    room = Room(folder, folder, None)
    room.dataset(train=8)
    room.fit()
    return folder / "run"


def wrong(row: Row, observed: Observed) -> str:
    """What is not as the row says, or ""."""
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
    lines = [line for line in message.splitlines() if not line.startswith("checking ")]
    return f"{missing} missing in: {message}" if missing or len(lines) != 1 else ""


def lines() -> Iterator[str]:
    """Every row as it happened on this machine, in Markdown."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        run = trained_run(Path(name) / "model")
        detector = load(run)
        for group, rows in TABLE.items():
            yield from (f"### {group}", "", "| what | what happens |", "| --- | --- |")
            for number, row in enumerate(rows):
                room = Room(Path(name) / group.replace(" ", "_") / str(number), run, detector)
                room.path.mkdir(parents=True)
                os.chdir(room.path)
                yield f"| {row.name} | {told(row, room)} |"
            yield ""
        os.chdir(PAGE.parent)


def told(row: Row, room: Room) -> str:
    """What happened in a row, for a cell of the table."""
    if reason := row.needs():
        return f"not tried: {reason}"
    observed = observe(row, room)
    if problem := wrong(row, observed):
        raise SystemExit(f"{row.name}: {problem}")
    if not isinstance(row.expected, Refused):
        return f"works: {row.expected.told}"
    message = " ".join(str(observed.error).replace(f"{room.path}{os.sep}", "").replace(str(room.path), ".").split())
    kind = "exit code 2" if isinstance(observed.error, CommandError) else f"`{type(observed.error).__name__}`"
    return f"{kind}: {shortened(message)}"


def shortened(message: str, most: int = 220) -> str:
    """A message for a cell: no markup, no folder of this machine, not longer than need be."""
    words = [Path(word).name if word.startswith(tempfile.gettempdir()) else word for word in message.split(" ")]
    words = [word if len(word) < 60 else f"{word[:20]}..." for word in words]
    text = " ".join(words).replace("error: ", "", 1).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return text if len(text) <= most else f"{text[:most].rstrip()} ..."


def main(words: list[str]) -> None:
    """Print the table, or with --write put it into its place in docs/robustness.md."""
    table = "\n".join(lines())
    if "--write" not in words:
        print(table)
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
