"""Plot of a training run's log."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semflow.errors import DataError

from .style import ANOMALOUS, FAINT, NORMAL, THRESHOLD, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TERMS = (("loss", "loss", "black", "-"), ("nll", "NLL", NORMAL, "--"), ("bce", "BCE", ANOMALOUS, "-."),
          ("kl", "KL", THRESHOLD, ":"))  # fmt: skip


def training_curves(log: str | Path | Sequence[Mapping[str, Any]], *, title: str = "Training") -> "Figure":
    """Plot the loss with its terms, and the learning rate with the largest gradient, per epoch.

    Args:
        log: Run directory, its `log.jsonl`, or its lines as mappings with `epoch`, `loss`, `nll`, `bce`, `kl`,
            `learning_rate` and `largest_gradient`.
        title: Title of the left panel.

    Example:
        >>> line = {"loss": 2.0, "nll": 1.0, "bce": 0.5, "kl": 0.1, "learning_rate": 1e-3, "largest_gradient": 3.0}
        >>> figure = training_curves([{"epoch": epoch, **line} for epoch in (1, 2)])
        >>> [axes.get_title("left") for axes in figure.axes]
        ['Training', 'Step size', '']
    """
    lines = _lines(log) if isinstance(log, str | Path) else list(log)
    if not lines:
        raise DataError(f"{log if isinstance(log, str | Path) else 'log'} must have at least one epoch, but got none")
    epochs = [line["epoch"] for line in lines]
    mark = "o" if len(lines) < 30 else None
    figure, axes = new_figure(2)
    left, right = axes[0]
    other = right.twinx()
    for panel, key, name, color, dashes in (
        *((left, *term) for term in _TERMS),
        (right, "learning_rate", "learning rate", NORMAL, "-"),
        (other, "largest_gradient", "largest gradient", FAINT, "--"),
    ):
        panel.plot(epochs, [line[key] for line in lines], color=color, linestyle=dashes, marker=mark, ms=3, label=name)
    finish(left, title, "epoch", "nats (NLL and KL per dimension)")
    other.set_ylabel("norm of the largest gradient", color=FAINT)
    other.spines[["top"]].set_visible(False)
    other.set_ylim(bottom=0)
    finish(right, "Step size", "epoch", "learning rate")
    return figure


def _lines(path: str | Path) -> list[Mapping[str, Any]]:
    file = Path(path) / "log.jsonl" if Path(path).is_dir() else Path(path)
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} must have one JSON object per line, but got {error}; name a run directory") from None
