"""Exceptions that semflow raises for invalid input and failed runs.

Every message names the argument or the file, what was expected, and what was found instead. The command line prints
the message on one line and exits with code 2.
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
    "WeightsError",
]

_CONTROL = re.compile("[\\x00-\\x1f\\x7f]")


class SemflowError(Exception):
    r"""Base class of all exceptions that semflow raises on purpose; the message is one line.

    Example:
        >>> str(DataError("line\nbreak.png must be an image, but got text"))
        'line\\nbreak.png must be an image, but got text'
    """

    def __init__(self, message: str = "") -> None:
        # A torch DataLoader raises a worker's error again with the whole traceback as its message: keep the last line.
        own = f"\n{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(own)[2].strip() if message.startswith("Caught ") else message)

    def __str__(self) -> str:  # file names may contain control characters
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
    """An option has an invalid value, or options contradict each other.

    Example:
        >>> from semflow.nn import SinusoidalPosition2d
        >>> SinusoidalPosition2d(6)
        Traceback (most recent call last):
        semflow.errors.ConfigError: channels must be a positive multiple of 4, but got 6
    """


class WeightsError(ConfigError):
    """Pretrained weights are neither on this machine nor available from the hub.

    Attributes:
        problem: what is missing, and why.
        url: address of the weights, or "".

    Example:
        >>> issubclass(WeightsError, ConfigError)
        True
    """

    def __init__(self, problem: str = "", advice: str = "", url: str = "") -> None:
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem, self.url = problem, url


class DataError(SemflowError, ValueError):
    """A file or folder of images is missing, unreadable, or not laid out as expected.

    Example:
        >>> from semflow.data import open_dataset
        >>> open_dataset("no/such/folder", "train")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        semflow.errors.DataError: ...
    """


class CheckpointError(SemflowError, ValueError):
    """A run directory or checkpoint is missing, damaged, or from another version.

    Example:
        >>> import semflow
        >>> semflow.load("no/such/run")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        semflow.errors.CheckpointError: ...
    """


class DeviceError(SemflowError, RuntimeError):
    """The requested device is not available on this machine.

    Example:
        >>> from semflow.training.loading import check_device
        >>> check_device("cuda:99")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        semflow.errors.DeviceError: ...
    """


class TrainingError(SemflowError, ArithmeticError):
    """The loss or a gradient is not finite.

    Example:
        >>> issubclass(TrainingError, SemflowError), issubclass(TrainingError, ArithmeticError)
        (True, True)
    """


class ProcessError(SemflowError, RuntimeError):
    """Another process of a distributed run failed, so this one cannot continue.

    Example:
        >>> issubclass(ProcessError, SemflowError), issubclass(ProcessError, RuntimeError)
        (True, True)
    """


class ExportError(SemflowError, ArithmeticError):
    """An exported model does not reproduce the scores of its detector.

    Example:
        >>> issubclass(ExportError, SemflowError), issubclass(ExportError, ArithmeticError)
        (True, True)
    """
