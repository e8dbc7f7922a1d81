"""What a process took at its peak."""

import resource
import sys

__all__ = ["peak_memory"]


def peak_memory() -> int:
    """Of this process so far, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
