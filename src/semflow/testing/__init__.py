"""The laws that a flow must keep, to be run on flows of one's own: `check_flow(flow, x, context)`."""

from .check import LawError, check_flow
from .laws import LAWS

__all__ = ["LAWS", "LawError", "check_flow"]
