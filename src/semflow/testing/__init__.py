"""Checks for user-defined flows: `check_flow(flow, x, context)` tests the laws that every flow must satisfy."""

from .check import LawError, check_flow
from .laws import LAWS

__all__ = ["LAWS", "LawError", "check_flow"]
