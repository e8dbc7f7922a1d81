"""Detectors of this library in anomalib's `Engine`, and anomalib's own flows there over predicted statistics.

Importing this module imports anomalib; `semflow.adapters` does not import it.
"""

from .anomalib_recipe import SemflowModule
from .anomalib_retrofit import StatisticsModule

__all__ = ["SemflowModule", "StatisticsModule"]
