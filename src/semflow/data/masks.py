"""Finding the mask file of each image, and comparing their sizes."""

from collections.abc import Sequence
from pathlib import Path

from semflow.errors import DataError

from .decoding import check_mask_size, decode_image, decode_mask, oriented_size
from .files import find_images
from .folder import Record
from .places import require_folder

__all__ = ["check_mask", "with_masks"]


def with_masks(
    images: Sequence[Path], folder: Path, ground_truth: Path, *, suffix: str = "", normal: str = "good"
) -> list[Record]:
    """Records with label 1, each with its mask: the file of the same relative name, whatever its image format.

    Args:
        images: the anomalous images.
        folder: the folder to which their names are relative.
        ground_truth: the folder of the masks.
        suffix: what a mask's name may have after the image's; a mask without it counts too.
        normal: where an image without a mask belongs, for the error.

    Raises:
        DataError: an image has no mask, or a mask of another size.
    """
    if not images:
        return []
    require_folder(ground_truth, f"the masks of {folder}", "add them")
    masks = {path.relative_to(ground_truth).with_suffix(""): path for path in find_images(ground_truth)}
    records = []
    for path in images:
        name = path.relative_to(folder).with_suffix("")
        expected = name.with_name(f"{name.name}{suffix}")
        mask = masks.get(expected, masks.get(name))
        if mask is None:
            raise DataError(
                f"{path}: expected its mask {ground_truth / expected}.png, but there is none; "
                f"add the mask, or move a normal image to {normal}."
            )
        check_mask(path, mask)
        records.append(Record(path, 1, mask))
    return records


def check_mask(image: Path, mask: Path) -> None:
    """Raise DataError unless a mask has its image's size, by the files' headers where those tell."""
    if oriented_size(image) != oriented_size(mask):
        # Some orientations are known only after decoding, so ask again before refusing.
        height, width = decode_mask(mask).shape
        check_mask_size(mask, (width, height), decode_image(image).size)
