"""More images than one process should score: blocks of them on a Ray cluster, each committed as one file.

`semflow score` is the command. Nothing of Ray is imported before it is needed (extra `ray`).
"""

from semflow.scale.blocks import BlockStore
from semflow.scale.cluster import connected
from semflow.scale.listing import Listing, read_listing
from semflow.scale.pipeline import Workers, score_blocks
from semflow.scale.rows import Block, Committed

__all__ = ["Block", "BlockStore", "Committed", "Listing", "Workers", "connected", "read_listing", "score_blocks"]
