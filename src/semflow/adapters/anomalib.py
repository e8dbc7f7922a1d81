"""Lightning modules for anomalib's `Engine`: recipes of this library, and anomalib's flows with predicted statistics.

Importing this module imports anomalib; `semflow.adapters` does not import it.
"""

from .anomalib_recipe import SemflowModule
from .anomalib_retrofit import StatisticsModule

__all__ = ["SemflowModule", "StatisticsModule"]
