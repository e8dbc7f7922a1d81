"""Flows of other libraries as flows of this one."""

from .freia import from_freia
from .wrap import FreiaFlow, as_flow

__all__ = ["FreiaFlow", "as_flow", "from_freia"]
