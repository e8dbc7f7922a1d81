"""What a person sees: overlays, galleries and HTML pages."""

from semflow.report.colors import heat_colors
from semflow.report.contour import contour
from semflow.report.files import staged_folder, write_atomic
from semflow.report.gallery import Panel, gallery
from semflow.report.maps import load_map, save_map
from semflow.report.overlay import heat_map, overlay, to_picture
from semflow.report.page import Entry, Picture, Section, Table, embed, link, render_page

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
    "staged_folder",
    "to_picture",
    "write_atomic",
]
