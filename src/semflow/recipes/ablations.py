"""The models of SANFlow's Tables 4 to 6 as arguments of `sanflow`."""

from typing import Any

from semflow.errors import ConfigError

__all__ = ["ABLATIONS", "ablation_arguments"]

ABLATIONS: dict[str, dict[str, Any]] = {
    "1a": {"synthesis": False, "variance": "unit", "bce": 0.0, "kl": 0.0},
    "1b": {"bce": 0.0, "kl": 0.0},
    "1c": {"kl": 0.0},
    "1d": {"bce": 0.0},
    "2a": {"synthesis": False},
    "3a": {"variance": "fixed"},
    "3b": {"variance": "fixed", "predicted_mean": True},
    "3c": {"predicted_mean": True},
}
"""Table 4, the loss: 1a is CFLOW-AD. Table 5, synthesis: 2a is CFLOW-AD+SP of Table S5. Table 6, what is predicted."""


def ablation_arguments(name: str) -> dict[str, Any]:
    """The arguments of a model of the paper.

    Raises:
        ConfigError: the paper has no such model.
    """
    if not isinstance(name, str) or name not in ABLATIONS:
        raise ConfigError(f"ablation must be one of {', '.join(ABLATIONS)}, but got {name!r}")
    return ABLATIONS[name]
