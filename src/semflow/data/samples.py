"""Samples and batches: what data sets may yield, checked and converted where batches are made."""

from collections.abc import Mapping, Sequence, Sized
from os import PathLike, fspath
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from semflow._channels import CHANNELS, alike, has_region, in_color
from semflow._validation import checked
from semflow.errors import ConfigError, DataError, ShapeError
from semflow.files import hash_tensor

SLACK = 0.05
"""Tolerance around [0, 1] for rounding and resampling; images of other scales lie far outside."""


class Sample(NamedTuple):
    """One image with its label, mask and path.

    Attributes:
        image: (C, H, W) float32 in [0, 1] with C = 1 for gray, 3 for RGB, and 2 or 4 for gray or RGB whose last channel
            is 1 in the region of interest and 0 outside it.
        label: 0 normal, 1 anomalous, -1 unknown.
        anomaly_mask: (H, W) bool, true where anomalous; None if the pixels are not labeled.
        path: The image file; of an image packed in a file, see `Record`.

    Example:
        >>> sample = Sample(torch.rand(3, 8, 8), 1, torch.ones(8, 8, dtype=torch.bool), "crack/000.png")
    """

    image: Tensor
    label: int
    anomaly_mask: Tensor | None
    path: str


class Batch(NamedTuple):
    """Stacked samples of one image size, made by `collate`.

    Attributes:
        images: (B, C, H, W) float32, with C as in `Sample`; gray if all are.
        labels: (B,) int64.
        anomaly_masks: (B, H, W) bool, or None if any mask is None.
        paths: One per image.

    Example:
        >>> collate([Sample(torch.rand(3, 8, 8), label, None, f"{label}.png") for label in (0, 1)]).paths
        ('0.png', '1.png')
    """

    images: Tensor
    labels: Tensor
    anomaly_masks: Tensor | None
    paths: tuple[str, ...]


def collate(samples: Sequence[Any]) -> Batch:
    """Stack samples of one image size to a batch; pass this function to a DataLoader as `collate_fn`.

    Samples may be of all forms that `as_sample` takes.

    Example:
        >>> batch = collate([Sample(torch.zeros(3, 4, 4), 0, torch.zeros(4, 4, dtype=torch.bool), "a.png")] * 2)
        >>> batch.images.shape, batch.labels.tolist(), batch.paths
        (torch.Size([2, 3, 4, 4]), [0, 0], ('a.png', 'a.png'))
    """
    if not len(samples):
        raise ShapeError("samples must contain at least one sample, but got none")
    return stack_samples([as_sample(sample, f"samples[{i}]") for i, sample in enumerate(samples)])


def stack_samples(samples: Sequence[Sample], copy: bool = True) -> Batch:
    """Stack samples that have been checked; a batch of one large image need not be a copy."""
    images = alike([sample.image for sample in samples])
    first = images[0].shape
    for image, sample in zip(images, samples, strict=True):
        if image.shape != first:
            raise ShapeError(
                f"samples must have images of one size, but got {tuple(first)} ({samples[0].path}) "
                f"and {tuple(image.shape)} ({sample.path}); load all images at one size"
            )
    masks = [sample.anomaly_mask for sample in samples if sample.anomaly_mask is not None]
    return Batch(
        images=torch.stack(images) if copy or len(samples) > 1 else images[0][None],
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64, device="cpu"),
        anomaly_masks=torch.stack(masks) if len(masks) == len(samples) else None,
        paths=tuple(sample.path for sample in samples),
    )


def hash_image(image: Tensor) -> str:
    """Compute the digest of an image, the same for gray and for RGB of equal channels."""
    return hash_tensor(in_color(image))


class CheckedSamples(Dataset[Sample]):
    """Map-style data set whose items are checked, and converted to `Sample`, by `as_sample`.

    Args:
        dataset: data set, list, or tensor (N, 3, H, W).
        name: of the data set in error messages.

    Example:
        >>> samples = CheckedSamples([(torch.rand(3, 8, 8), 0), {"image": torch.rand(3, 8, 8).double(), "label": 1}])
        >>> [(sample.label, sample.image.dtype, sample.path) for sample in samples]
        [(0, torch.float32, 'dataset[0]'), (1, torch.float32, 'dataset[1]')]
    """

    @checked
    def __init__(self, dataset: Any, name: str = "dataset") -> None:
        if isinstance(dataset, CheckedSamples):
            dataset = vars(dataset)["dataset"]
        advice = ""
        if isinstance(dataset, DataLoader):
            advice = "; pass its dataset, and batch_size and workers"
        elif isinstance(dataset, str | PathLike):
            advice = "; open it with semflow.data.open_dataset"
        elif isinstance(dataset, Sample | Mapping):
            advice = "; put samples into a list"
        elif isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            advice = "; make a list of its samples"
        if advice:
            raise ConfigError(
                f"{name} must be a data set with a length and items by number, but got {type(dataset).__name__}{advice}"
            )
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, but got {index}")
        return as_sample(self.dataset[index], f"{self.name}[{index}]")


def as_sample(item: Any, name: str) -> Sample:
    """Check an item of a data set and return it as a `Sample`.

    Args:
        item: a `Sample`, an image alone, a tuple of image, label, mask and path, or a dict with these. It needs only an
            image. It is a float tensor or array (C, H, W) in [0, 1], see `Sample`; a label is 0, 1 or -1; a mask is
            (H, W), bool or a number that is 0 where normal.
        name: of the item in error messages, and as its path if it has none.

    Raises:
        ShapeError: If type, shape or range are wrong.
        DataError: If pixels are not finite.

    Example:
        >>> as_sample((torch.rand(3, 2, 2, dtype=torch.float64), torch.tensor(1), torch.eye(2) * 255), "a").anomaly_mask
        tensor([[ True, False],
                [False,  True]])
    """
    if isinstance(item, Mapping):
        if "image" not in item:
            raise ShapeError(f"{name} must have an image, but got a dict with {', '.join(map(str, item)) or 'nothing'}")
        parts = [item["image"], item.get("label"), item.get("anomaly_mask", item.get("mask")), item.get("path")]
    else:
        parts = list(item) if isinstance(item, tuple | list) else [item]
        if not 1 <= len(parts) <= 4:
            raise ShapeError(f"{name} must be an image, label, mask and path, but got {len(parts)} values")
        parts += [None] * (4 - len(parts))
    image, label, mask, path = parts
    if not isinstance(path, str | PathLike | None):
        raise ShapeError(f"path of {name} must be a path or a text, but got {type(path).__name__}")
    where = name if path is None or path == "" else str(fspath(path))
    image = _image(image, where)
    return Sample(image, _label(label, where), None if mask is None else _mask(mask, image, where), where)


def _image(given: Any, where: str) -> Tensor:
    image = torch.from_numpy(np.ascontiguousarray(given)) if _is_numeric(given) else given
    if not isinstance(image, Tensor):
        raise ShapeError(
            f"image of {where} must be a float tensor (C, H, W) in [0, 1], but got {type(given).__name__}; "
            "semflow.data.load_image makes one"
        )
    if image.dim() != 3 or image.shape[0] not in CHANNELS or 0 in image.shape or not image.is_floating_point():
        advice = "divide it by 255" if image.dtype == torch.uint8 else "convert it"
        if image.dim() == 2:
            advice = "add a first axis"
        elif image.dim() == 3 and image.shape[2] in (1, 3):
            advice = "permute it to (C, H, W)" + (" and divide it by 255" if image.dtype == torch.uint8 else "")
        raise ShapeError(
            f"image of {where} must be float (C, H, W) in [0, 1] with 1 to 4 channels, but got {tuple(image.shape)} of "
            f"{image.dtype}; {advice}"
        )
    image = image.detach().to(torch.float32)
    low, high = (value.item() for value in torch.aminmax(image))  # NaN if any pixel is NaN
    if not -SLACK <= low <= high <= 1 + SLACK:
        if not image.isfinite().all():
            raise DataError(f"{where} must have finite pixels, but got inf or NaN; remove it")
        raise ShapeError(
            f"image of {where} must lie in [0, 1], but got values from {low:g} to {high:g}; "
            "divide bytes by 255 and do not normalize, which the backbone does"
        )
    if has_region(len(image)) and not bool(((image[-1] == 0) | (image[-1] == 1)).all()):
        raise ShapeError(
            f"image of {where} must have 0 or 1 as its last of {len(image)} channels, its region of interest, but got "
            "other values; leave an alpha channel out"
        )
    if has_region(len(image)) and not bool(image[-1].any()):
        raise DataError(f"{where} must have pixels in its region of interest, the last channel, but got none")
    return image


def _label(given: Any, where: str) -> int:
    if given is None:
        return -1
    number = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    if number.size != 1 or number.dtype.kind not in "biuf" or number.item() not in (-1, 0, 1):
        raise ShapeError(
            f"label of {where} must be 0 (normal), 1 (anomalous) or -1 (unknown), but got {str(given)[:40]!r}"
        )
    return int(number.item())


def _mask(given: Any, image: Tensor, where: str) -> Tensor:
    """Return a mask of two values, or of levels of which those above the middle of the type are anomalous."""
    mask = torch.from_numpy(np.ascontiguousarray(given)) if _is_numeric(given) else given
    size = tuple(image.shape[1:])
    if isinstance(mask, Tensor) and mask.dim() == 3 and 1 in (mask.shape[0], mask.shape[2]):
        mask = mask.squeeze(0) if mask.shape[0] == 1 else mask.squeeze(2)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != size:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(given).__name__
        raise ShapeError(f"anomaly_mask of {where} must be {size} like its image, but got {found}")
    if mask.dtype == torch.bool:
        return mask
    levels = mask.detach().unique()
    low, high = levels[0].item(), levels[-1].item()
    if not 0 <= low <= high or (len(levels) > 2 and high > 1 and high != 255) or (len(levels) == 2 and low > 0):
        raise ShapeError(
            f"anomaly_mask of {where} must be 0 where normal and 1 or 255 where anomalous, but got {len(levels)} "
            f"values from {low:g} to {high:g}; make it bool"
        )
    return mask > (0 if len(levels) <= 2 else high / 2)


def _is_numeric(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.dtype.kind in "biuf"
