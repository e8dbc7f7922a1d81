"""A Ray cluster of several nodes on this machine, each with its raylet, its object store and its address."""

__all__ = ["Nodes"]

import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from helpers.keeping import Kept

STORE = str(100 * 2**20)


class Nodes:
    """The first node is the head, with the cluster's address; nothing of any node outlives the block.

    Args:
        folder: for what the nodes say.
        python_path: where workers find the modules of the tests.

    Attributes:
        environment: of a command that is to use the cluster; nodes have it too.
    """

    def __init__(self, folder: Path, python_path: Sequence[str | Path] = ()) -> None:
        self.folder, self.stack, self.nodes = folder, ExitStack(), list[Kept]()
        # A cluster runs whatever it is sent: who does not know the token is refused.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join([*map(str, python_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, **quiet, **token, "PYTHONPATH": path}

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, cpus: int, before: Sequence[str] = ()) -> Kept:
        """A node; the first has to be first.

        Args:
            cpus: that it says it has.
            before: words before its command, such as those that give it other mounts.
        """
        number = len(self.nodes)
        # Sockets are in it, whose paths must be short.
        place = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes", ignore_cleanup_errors=True))
        words = [*before, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", str(cpus)]
        words += ["--object-store-memory", STORE, "--temp-dir", place, "--disable-usage-stats"]
        if number:
            words += ["--address", self.environment["RAY_ADDRESS"], "--node-ip-address", f"127.0.0.{number + 1}"]
        else:
            words += ["--head", "--port", free_port(), "--include-dashboard", "false"]
            words += ["--ray-client-server-port", free_port()]
        node = Kept(words, self.folder / f"node{number}.txt", {**self.environment, "RAY_ADDRESS": ""})
        self.stack.callback(node.kill)
        node.until("Ray runtime started")
        if not number:
            words = node.said().partition("ray start --address='")[2]
            self.environment["RAY_ADDRESS"] = words.partition("'")[0]
        self.nodes.append(node)
        return node


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
