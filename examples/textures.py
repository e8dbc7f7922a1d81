"""Images for the examples: your own folder, or a texture of scikit-image with synthetic defects."""

from pathlib import Path

from semflow.app.cli.demo_data import write_texture


def data_folder(given: Path | None, made: Path) -> Path:
    """Return the given folder, or write the brick images of `semflow demo` to `made` in the layout of MVTec AD."""
    if given is not None:
        return given
    if not made.exists():
        write_texture("brick", made, seed=0)
    return made
