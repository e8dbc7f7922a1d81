"""Where the examples get images from: a folder of yours, or a texture of scikit-image with defects drawn into it."""

from pathlib import Path

from semflow.app.cli.demo_data import write_texture


def data_folder(given: Path | None, made: Path) -> Path:
    """The folder that was given; without one the brick of `semflow demo`, written to `made` in MVTec AD's layout."""
    if given is not None:
        return given
    if not made.exists():
        write_texture("brick", made, seed=0)
    return made
