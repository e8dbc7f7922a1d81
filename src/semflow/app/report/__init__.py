"""Pictures, galleries, HTML pages and files of anomaly maps."""

from .colors import heat_colors
from .maps import load_map, save_map
from .page import VIEWS, Entry, Table, View, embed, link, render_page
from .panels import Panel, gallery
from .pictures import contour, heat_map, overlay, to_picture

__all__ = [
    "VIEWS", "Entry", "Panel", "Table", "View", "contour", "embed", "gallery", "heat_colors", "heat_map", "link",
    "load_map", "overlay", "render_page", "save_map", "to_picture",
]  # fmt: skip
