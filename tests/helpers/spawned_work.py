"""Work for separate processes, in a module that they can import, and without torch so that they start quickly."""

import os
import signal
import time
from pathlib import Path


def work(job: tuple[str, str]) -> str:
    what, value = job
    if what == "raise":
        raise ValueError(f"cannot do {value}\nin two lines")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        Path(value).write_text(str(os.getpid()))
        time.sleep(60)
    if what == "environment":
        return os.environ.get(value, "")
    return value
