"""What a person sees: overlays, galleries and HTML pages."""

from .colors import heat_colors
from .contour import contour
from .gallery import Panel, gallery
from .maps import load_map, save_map
from .overlay import heat_map, overlay, to_picture
from .page import Entry, Picture, Section, Table, embed, link, render_page

__all__ = [
    "Entry",
    "Panel",
    "Picture",
    "Section",
    "Table",
    "contour",
    "embed",
    "gallery",
    "heat_colors",
    "heat_map",
    "link",
    "load_map",
    "overlay",
    "render_page",
    "save_map",
    "to_picture",
]
