"""Sphinx: the reference, from the docstrings. Built by docs/build.py, which makes the inventories."""

import os
from pathlib import Path

import numpy.typing

# Otherwise annotations show the private union that it stands for.
numpy.typing.ArrayLike = type("ArrayLike", (), {"__module__": "numpy.typing"})

import semflow  # noqa: E402

project = "semflow"
author = "the semflow authors"
release = version = semflow.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sitebuild.reference",
]
default_role = "py:obj"  # `name` is a link where the reference has the name, and code everywhere
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    # type variables, and bases and aliases that are no part of the interface
    ("py:class", r"(semflow\.\w+\.\w+\.)?([A-Z]|_\w+|ForeignFlow|ChannelMoments|PixelSplit|SemanticLazyNormal)"),
    # as written under TYPE_CHECKING, where torch and numpy are not imported
    ("py:class", "Values|Tensor|NDArray|Figure|np\\.generic|np\\.bool_"),
]

inventories = Path(os.environ["SEMFLOW_INVENTORIES"])
intersphinx_mapping = {
    "guide": ("..", str(inventories / "guide.inv")),
    "others": ("https://", str(inventories / "others.inv")),
}

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Fields", "params_style")]
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "semflow reference"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
