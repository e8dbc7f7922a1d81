"""More images than one process should score: blocks of them on a Ray cluster, each committed as one file.

`semflow score` is the command. Nothing of Ray is imported before it is needed (extra `ray`).
"""

from .blocks import BlockStore
from .cluster import connected
from .listing import Listing, read_listing
from .pipeline import Workers, score_blocks
from .rows import Block, Committed

__all__ = ["Block", "BlockStore", "Committed", "Listing", "Workers", "connected", "read_listing", "score_blocks"]
