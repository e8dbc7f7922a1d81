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
    """A tensor has the wrong shape, dtype or range.

    Example:
        >>> from semflow.metrics import auroc
        >>> auroc([0.1, 0.2, 0.3], [0, 1])  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        semflow.errors.ShapeError: ...
    """


class ConfigError(SemflowError, ValueError):
    """An option has a value that does not exist or does not go with the others.

    Example:
        >>> from semflow.nn import SinusoidalPosition2d
        >>> SinusoidalPosition2d(6)
        Traceback (most recent call last):
        semflow.errors.ConfigError: channels of a position code must be a positive multiple of 4, but got 6
    """


class DataError(SemflowError, ValueError):
    """A file or folder of images is missing, broken, or laid out otherwise than expected.

    Example:
        >>> from semflow.data import open_dataset
        >>> open_dataset("no/such/folder", "train")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        semflow.errors.DataError: ...
    """


class CheckpointError(SemflowError, ValueError):
    """A run directory or checkpoint is missing, broken, or of another version.

    Example:
        >>> import semflow
        >>> semflow.load("no/such/run")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        semflow.errors.CheckpointError: ...
    """


class DeviceError(SemflowError, RuntimeError):
    """A device was asked for that this machine does not have.

    Example:
        >>> from semflow.training.loading import check_device
        >>> check_device("cuda:99")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        semflow.errors.DeviceError: ...
    """


class TrainingError(SemflowError, ArithmeticError):
    """Training has come to a loss or a gradient that is not finite.

    Example:
        >>> issubclass(TrainingError, SemflowError), issubclass(TrainingError, ArithmeticError)
        (True, True)
    """


class ProcessError(SemflowError, RuntimeError):
    """Another process of a run of several has failed, and this one cannot go on without it.

    Example:
        >>> issubclass(ProcessError, SemflowError), issubclass(ProcessError, RuntimeError)
        (True, True)
    """


class ExportError(SemflowError, ArithmeticError):
    """An exported model gives other numbers than the detector it was made of.

    Example:
        >>> issubclass(ExportError, SemflowError), issubclass(ExportError, ArithmeticError)
        (True, True)
    """
