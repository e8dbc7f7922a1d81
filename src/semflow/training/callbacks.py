"""Callbacks of `fit`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from semflow.detectors import Detector
from semflow.errors import ConfigError

from .checkpoint import summary

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class RunStart:
    """Information about a run, passed to callbacks before training.

    Attributes:
        folder: run directory, or None.
        settings: settings of the run by dotted name.
        records: records of the epochs that an earlier call of `fit` has finished.
        rank: number of this process; files and servers are for process 0.

    Example:
        >>> RunStart(None, {"training.epochs": 3}).rank
        0
    """

    folder: Path | None
    settings: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]] = ()
    rank: int = 0


class Callback:
    """Base class of callbacks of `fit`, whose methods do nothing. All are called in every process.

    Callbacks must not change the detector. If one raises, the error ends the training, and the run directory keeps all
    epochs so far.

    Example:
        >>> import torch
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> from semflow.training import Callback, fit
        >>> class Losses(Callback):
        ...     def epoch(self, detector, record):
        ...         print(record["epoch"], record["loss"] < 10)
        >>> good = [Sample(torch.rand(3, 32, 32), 0, None, f"{i}.png") for i in range(4)]
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> _ = fit(detector, good, epochs=2, progress=False, callbacks=[Losses()])
        1 True
        2 True
    """

    def begin(self, detector: Detector, start: RunStart) -> None:
        """Prepare for a new, resumed or finished run, before anything is computed."""

    def epoch(self, detector: Detector, record: Mapping[str, Any]) -> None:
        """Take the record of an epoch, its line of `log.jsonl`; the score of the detector has no constants yet."""

    def end(self, detector: Detector, summary: Mapping[str, Any]) -> None:
        """Take the finished detector, in eval mode, and what `summary.json` holds."""

    def close(self) -> None:
        """Release what `begin` has opened. It is called last, after an error too."""


def closing(function: Callable[P, R]) -> Callable[P, R]:
    """Check the argument `callbacks` of a function, and close them at its end; an error of the function comes first."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        callbacks: Any = kwargs.get("callbacks", ())
        for given in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
            if not isinstance(given, Callback) or given is callbacks:
                kind = type(given).__name__
                raise ConfigError(f"callbacks must be a list of semflow.training.Callback, but got {kind}")
        try:
            found = function(*args, **kwargs)
        except BaseException:
            for callback in callbacks:
                with suppress(Exception):
                    callback.close()
            raise
        for callback in callbacks:
            callback.close()
        return found

    return call


def begin(callbacks: Sequence[Callback], detector: Detector, start: RunStart) -> None:
    """Call all callbacks before training."""
    for callback in callbacks:
        callback.begin(detector, start)


def after_epoch(
    callbacks: Sequence[Callback], detector: Detector, record: Mapping[str, Any], save: Callable[[], object]
) -> None:
    """Call all callbacks after an epoch, and `save` if one raises, so that nothing is lost by its error."""
    try:
        for callback in callbacks:
            callback.epoch(detector, record)
    except Exception:
        with suppress(Exception):  # such as a full disk, which may be what the callback has met
            save()
        raise


def end(callbacks: Sequence[Callback], detector: Detector) -> Detector:
    """Call all callbacks at the end, and return the detector."""
    for callback in callbacks:
        callback.end(detector, summary(detector))
    return detector
