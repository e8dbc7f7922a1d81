"""Settings of SANFlow's ablation studies."""

from typing import Any

__all__ = ["ABLATIONS"]

ABLATIONS: dict[str, dict[str, Any]] = {
    "1a": {"synthesis": None, "statistics.variance": "unit", "statistics.bce": 0.0, "statistics.kl": 0.0},
    "1b": {"statistics.bce": 0.0, "statistics.kl": 0.0},
    "1c": {"statistics.kl": 0.0},
    "1d": {"statistics.bce": 0.0},
    "2a": {"synthesis": None},
    "3a": {"statistics.variance": "fixed"},
    "3b": {"statistics.variance": "fixed", "statistics.predicted_mean": True},
    "3c": {"statistics.predicted_mean": True},
}
"""Settings of `sanflow` for the models of the paper's Tables 4 to 6, used as `build("sanflow", ABLATIONS["1a"])`.

Table 4 varies the loss (1a is CFLOW-AD), Table 5 the synthesis (2a is CFLOW-AD+SP of Table S5), Table 6 the predicted
statistics.
"""
