"""The command line: `semflow demo`, `fit`, `evaluate` and `predict`. Nothing heavy is imported before it is needed."""

from semflow.cli.main import main

__all__ = ["main"]
