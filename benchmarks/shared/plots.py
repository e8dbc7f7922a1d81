"""Colors of all plots, the check for matplotlib, and saving."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from semflow.errors import ConfigError

from .record import write

# The palette of Okabe and Ito, which color-blind readers can tell apart.
OURS, PAPER, BEST, CONTROL = "#0072B2", "#BBBBBB", "#D55E00", "#56B4E9"


def require_matplotlib(advice: str = "") -> None:
    """Raise ConfigError if matplotlib is missing.

    Args:
        advice: an alternative, such as ", or give --no-chart".
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            f'matplotlib must be installed for plots, but got none; python -m pip install "semflow[plot]"{advice}'
        )


def save(figure: Any, path: Path, dpi: int = 160) -> Path:
    """Write a figure as PNG or SVG, completely or not at all."""
    buffer = io.BytesIO()
    kind = path.suffix[1:]
    figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return write(path, buffer.getvalue())
