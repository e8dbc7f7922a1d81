"""All laws of flows: one function each, which yields what it finds, for `check_flow` to judge."""

from collections.abc import Callable, Iterator, Mapping

from .case import Case, Finding
from .derivatives import gradients, log_det
from .independence import batch, locality
from .results import inverse, layout, purity, shapes
from .surroundings import autocast, compiled, state_dict

__all__ = ["LAWS", "Law"]

Law = Callable[[Case], Iterator[Finding]]

LAWS: Mapping[str, Law] = {
    law.__name__: law
    for law in (shapes, purity, layout, inverse, locality, batch, log_det, gradients, autocast, state_dict, compiled)
}
"""All laws by name, in the order in which they are tried."""
