"""What the guide names as evidence exists, and messages of the troubleshooting page are messages of the source."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMED = sorted(
    {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`(?:tests/)?([\w/]+\.py(?:::\w+)?)`", page.read_text())
    }
)
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))


def test_named_tests_exist() -> None:
    tests = [(page, name) for page, name in NAMED if Path(name.partition("::")[0]).name.startswith("test_")]
    assert len(tests) > 30
    for page, name in tests:
        file, _, function = name.partition("::")
        path = ROOT / "tests" / file
        assert path.is_file(), f"{page}: {file}"
        assert not function or f"def {function}(" in path.read_text(encoding="utf-8"), f"{page}: {name}"


MESSAGES = re.findall(r"^\*\*`(.+)`\*\*$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
FOREIGN = {"operator torchvision::nms does not exist"}  # torchvision's own


@pytest.mark.parametrize("message", [message for message in MESSAGES if message not in FOREIGN])
def test_messages_are_those_of_the_source(message: str) -> None:
    """Each piece between `...` stands in a string of the source, whose literals may go on in the next line."""
    joined = re.sub(r"\"\s*\n\s*f?\"", "", SOURCE)
    for piece in message.split("..."):
        assert piece.strip() in joined, piece


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 15
