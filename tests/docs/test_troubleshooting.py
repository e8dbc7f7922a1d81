"""Messages on the troubleshooting page occur in the source."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
FOREIGN = {"operator torchvision::nms does not exist"}  # torchvision's own
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))


@pytest.mark.parametrize("message", [message for message in MESSAGES if message not in FOREIGN])
def test_message_occurs_in_the_source(message: str) -> None:
    """Each piece between `...` is part of a string in the source, which may be split over lines."""
    joined = re.sub(r"\"\s*\n\s*f?\"", "", SOURCE)
    for piece in message.split("..."):
        assert piece.strip() in joined, piece


def test_page_has_messages() -> None:
    assert len(MESSAGES) >= 15
