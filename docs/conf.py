"""Configuration of the documentation."""

from levada import __version__

project = "levada"
author = "The levada authors"
copyright = "2026, the levada authors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "levada"
napoleon_custom_sections = [("Shape", "params_style"), "Unit", "Source"]
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
html_copy_source = False
