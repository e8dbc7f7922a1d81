"""The layout of MVTec AD."""

from os import PathLike
from typing import Literal

from semflow._validation import Size, checked

from .dataset import ImageDataset, Record
from .files import list_images
from .layouts import category_folder, tested
from .resizing import Resize


class MVTecAD(ImageDataset):
    """A category in the layout of MVTec AD (Bergmann et al. 2019).

    ROOT/train/good, ROOT/test/TYPE, ROOT/ground_truth/TYPE/NAME_mask.png (or NAME.png; any image format). The training
    images are normal; of the test images, type `good` is normal and every image of another type has a mask. The
    constructor checks existence and size of the masks from the headers of the files; `verify()` decodes everything.
    Other datasets have this layout too: MPDD (Jezek et al. 2021), and VisA after its authors' preparation script.

    Args:
        root: The folder of the category, or of all categories if `category` is given.
        split: "train" or "test".
        category: A folder in `root`.
        image_size, cache, resize: See `ImageDataset`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "screw/train/good").mkdir(parents=True)
        ...     Image.new("RGB", (32, 32)).save(Path(root, "screw/train/good/0.png"))
        ...     MVTecAD(root, category="screw")
        MVTecAD(1 normal, image_size=256, has_masks=True)
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: Size | None = 256,
        *,
        category: str | None = None,
        cache: bool = False,
        resize: Resize = "stretch",
    ) -> None:
        folder = category_folder(root, category, "MVTec AD", lambda path: (path / split).is_dir(), f"a folder {split}/")
        found = list_images(folder / "train" / "good" if split == "train" else folder / "test")
        records = (
            [Record(path, 0) for path in found.images]
            if split == "train"
            else tested(folder / "test", folder / "ground_truth", found.images)
        )
        super().__init__(
            records, image_size, has_masks=True, cache=cache, root=folder, passed_over=found.passed_over, resize=resize
        )
