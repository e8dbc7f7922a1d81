"""Connection to Ray: to the cluster that RAY_ADDRESS names, or to this machine."""

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
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def connected(cpus: int = 1) -> Iterator[Any]:
    """Connect to Ray while the block runs, and yield the module `ray`.

    The environment variable RAY_ADDRESS names the cluster; `auto` means the one that `ray start` connected to.
    Without it, Ray runs on this machine only and ends with the block; its dashboard is off, and so are its usage
    statistics unless RAY_USAGE_STATS_ENABLED is set. An existing connection is used and stays open.

    Args:
        cpus: Number of CPUs that Ray counts on this machine, if it has fewer. Ray only starts what they allow.
    """
    ray: Any = import_optional("ray")
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core logs harmless events as errors
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
                    f"RAY_AUTH_TOKEN must be the token of the cluster at {address}, but got another; set "
                    "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray/auth_token has the token"
                ) from error
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"RAY_ADDRESS must be the address of a Ray cluster, but got {address} ({reason}); start one with "
                "ray start --head, or unset RAY_ADDRESS to use this machine only"
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def resources(ray: Any) -> tuple[float, float]:
    """Return the numbers of CPUs and GPUs of the cluster."""
    found = ray.cluster_resources()
    return float(found.get("CPU", 0)), float(found.get("GPU", 0))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the handler of SIGTERM: Ray installs one that ends the program without a message."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _silent() -> Iterator[None]:
    """Discard standard error, where Ray's core prints its log level. Failures are exceptions."""
    sys.stderr.flush()
    own, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(null)
