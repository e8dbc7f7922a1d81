"""What the plots of all rooms have in common: their colours, and what is said where matplotlib is missing."""

from importlib.util import find_spec

from semflow.errors import ConfigError

__all__ = ["BEST", "CONTROL", "OURS", "PAPER", "require_matplotlib"]

# Okabe and Ito's colours keep apart for colour-blind readers; the hatch and the marker in grey print.
OURS, PAPER, BEST, CONTROL = "#0072B2", "#BBBBBB", "#D55E00", "#56B4E9"


def require_matplotlib(instead: str = "") -> None:
    """Say before the work that there will be no plot.

    Args:
        instead: what else could be done, such as ", or give --no-chart".

    Raises:
        ConfigError: matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(f'plots need matplotlib: python -m pip install "semflow[plot]"{instead}')
