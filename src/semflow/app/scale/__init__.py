"""Scoring of many images in blocks on a Ray cluster; each block is committed as one file.

The command line uses it for `semflow score`. Ray (extra `ray`) is imported when a function needs it.
"""

from .blocks import Block, BlockStore, Committed
from .cluster import connected
from .listing import Listing, read_listing
from .pipeline import Workers, score_blocks

__all__ = ["Block", "BlockStore", "Committed", "Listing", "Workers", "connected", "read_listing", "score_blocks"]
