"""Ray, connected: the cluster that RAY_ADDRESS names, or this machine."""

__all__ = ["connected", "cpu_count", "resources"]

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from semflow._optional import import_optional
from semflow.errors import ConfigError


def cpu_count() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def connected(cpus: int = 1) -> Iterator[Any]:
    """The module `ray`, connected while the block runs.

    The environment variable RAY_ADDRESS names the cluster (`auto`: the one that `ray start` made this machine part of).
    Without it Ray runs on this machine alone and ends with the block; its dashboard is off, and so are its usage
    statistics unless RAY_USAGE_STATS_ENABLED says otherwise. Where Ray is connected already, that is taken and stays.

    Args:
        cpus: to count on this machine, if it has fewer. Ray does not start what does not fit into them.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    ray: Any = import_optional("ray")
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core calls errors what are none
    options: dict[str, Any] = {"address": address, "logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "num_cpus": max(cpus, cpu_count())}
    with _own_signals(), _silent():
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if "AuthenticationError" in f"{error} {error.__cause__}":
                raise ConfigError(
                    f"RAY_ADDRESS {address}: the cluster expects its token; set RAY_AUTH_MODE=token, and "
                    "RAY_AUTH_TOKEN where ~/.ray/auth_token is not that of the cluster"
                ) from error
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"RAY_ADDRESS {address}: expected a Ray cluster, but: {reason}; begin one with ray start --head, "
                "or unset RAY_ADDRESS for this machine alone"
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def resources(ray: Any) -> tuple[float, float]:
    """The CPUs and GPUs of all machines together."""
    found = ray.cluster_resources()
    return float(found.get("CPU", 0)), float(found.get("GPU", 0))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM to itself when it starts, and would end this program without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _silent() -> Iterator[None]:
    """Without standard error, where Ray's core tells which level its log has. What fails is an exception."""
    sys.stderr.flush()
    own, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(nowhere)
