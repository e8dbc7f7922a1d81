"""Checks of the numbers among the options of all commands."""

import re

from semflow.errors import ConfigError

from .options import Command, Score

NUMBERS = (
    "epochs", "batch_size", "workers", "seed", "hold_out", "threads", "block_size", "neighbors", "tile", "overlap",
)  # fmt: skip
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?|mps")
LARGEST_SEED = 2**63 - 1  # torch accepts no larger one


def check_numbers(options: Command) -> None:
    """Raise ConfigError if a number is out of range."""
    may_be_zero = ("seed", "hold_out", "overlap", *(() if isinstance(options, Score) else ("workers",)))
    for name in NUMBERS:
        value, least = getattr(options, name, None), 0 if name in may_be_zero else 1
        if value not in (None, "cross") and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, but got {value}")
    if not DEVICES.fullmatch(device := getattr(options, "device", "cpu")):
        raise ConfigError(f"--device must be auto, cpu, cuda, cuda:N or mps, but got {device}")
    rate = getattr(options, "false_alarm_rate", None)
    if rate is not None and not 0 < rate < 1:
        raise ConfigError(f"--false-alarm-rate must be between 0 and 1, but got {rate:g}; use for example 0.01")
    seed = getattr(options, "seed", None)
    if seed is not None and seed > LARGEST_SEED:
        raise ConfigError(f"--seed must be at most {LARGEST_SEED}, but got {seed}")
