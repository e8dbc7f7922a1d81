"""Adapters for flows of other libraries, and statistics prediction or a memory for any flow."""

from .callable_flow import CallableFlow
from .dispatch import as_flow
from .freia import from_freia
from .freia_flow import FreiaFlow
from .memory import with_memory
from .nflows_flow import NFlowsFlow
from .normflows_flow import NormflowsFlow
from .statistics import FlowWithStatistics, with_statistics
from .transform_flow import TransformFlow
from .zuko_base import ZukoBase
from .zuko_flow import ZukoFlow

__all__ = [
    "CallableFlow", "FlowWithStatistics", "FreiaFlow", "NFlowsFlow", "NormflowsFlow", "TransformFlow", "ZukoBase",
    "ZukoFlow", "as_flow", "from_freia", "with_memory", "with_statistics",
]  # fmt: skip
