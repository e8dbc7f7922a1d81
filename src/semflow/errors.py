"""What a user of semflow can do wrong, and how it is said.

Every error names the argument or the file, what was expected and what came. The command line prints the message as
one line and exits with 2; a library user catches `SemflowError` or one of its kinds.
"""

import re

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "ExportError",
    "ProcessError",
    "SemflowError",
    "ShapeError",
    "TrainingError",
]

_CONTROL = re.compile("[\\x00-\\x1f\\x7f]")


class SemflowError(Exception):
    """Base of all errors that semflow raises on purpose; its message is one line.

    >>> str(DataError("line\\nbreak.png: expected an image"))
    'line\\\\nbreak.png: expected an image'
    """

    def __init__(self, message: str = "") -> None:
        # A loader of torch raises a worker's error anew, with its whole traceback for a message: the end is the error.
        own = f"\n{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(own)[2].strip() if message.startswith("Caught ") else message)

    def __str__(self) -> str:  # the name of a file may hold anything
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], super().__str__())


class ShapeError(SemflowError, ValueError):
    """A tensor has the wrong shape, dtype or range."""


class ConfigError(SemflowError, ValueError):
    """An option has a value that does not exist or does not go with the others."""


class DataError(SemflowError, ValueError):
    """A file or folder of images is missing, broken, or laid out otherwise than expected."""


class CheckpointError(SemflowError, ValueError):
    """A run directory or checkpoint is missing, broken, or of another version."""


class DeviceError(SemflowError, RuntimeError):
    """A device was asked for that this machine does not have."""


class TrainingError(SemflowError, ArithmeticError):
    """Training has come to a loss or a gradient that is not finite."""


class ProcessError(SemflowError, RuntimeError):
    """Another process of a run of several has failed, and this one cannot go on without it."""


class ExportError(SemflowError, ArithmeticError):
    """An exported model gives other numbers than the detector it was made of."""
