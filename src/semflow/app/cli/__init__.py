"""The command line: `semflow demo`, `fit`, `evaluate` and `predict`. Nothing heavy is imported before it is needed."""

from .main import main

__all__ = ["main"]
