"""The figures that the SANFlow paper and its supplement print, as they print them.

One TOML file a table, values in percent as text, so that the printed precision is kept. What contradicts itself or
another table is marked as a misprint, with the likely value; nothing is corrected silently.
"""

from .tables import NAMES, Misprint, PaperRow, PaperTable, load, lookup

__all__ = ["NAMES", "Misprint", "PaperRow", "PaperTable", "load", "lookup"]
