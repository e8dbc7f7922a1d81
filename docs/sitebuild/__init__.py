"""What `docs/build.py` is made of: inventories, an extension of Sphinx, hooks of mkdocs, and the check of links."""
