"""The figures of the SANFlow paper and its supplement, as printed.

One TOML file per table, with values in percent as text, which keeps the printed precision. A value that contradicts its
row or another table is marked as a misprint, with the likely value; nothing is corrected.
"""

from .tables import NAMES, Misprint, PaperRow, PaperTable, load, lookup

__all__ = ["NAMES", "Misprint", "PaperRow", "PaperTable", "load", "lookup"]
