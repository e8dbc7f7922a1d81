"""Predictions for images of any size from those for their tiles."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semflow._channels import has_region
from semflow._tiling import Tiles
from semflow.errors import ShapeError

from .calibration import Calibration
from .inputs import check_images
from .interface import Prediction


class TileDetector(Protocol):
    """Part of a `Detector` that predicts tiles."""

    calibration: Calibration

    @property
    def reference(self) -> Tensor:
        """Tensor of the device and the type of the detector."""

    def __call__(self, images: Tensor) -> Prediction:
        """Predict tiles (B, C, S, S)."""


@torch.no_grad()
def predict_tiles(detector: TileDetector, images: Tensor, tiles: Tiles) -> Prediction:
    """Predict images (B, C, H, W) on any device, one after the other; see `Tiles` for map and score.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> predict_tiles(detector, torch.rand(1, 3, 40, 70), Tiles(32, 8)).anomaly_map.shape
        torch.Size([1, 40, 70])
    """
    own = detector.reference
    anywhere = own.new_empty(0, device=images.device) if isinstance(images, Tensor) else own
    check_images(images, anywhere, values=False)
    dtype = torch.promote_types(images.dtype, torch.float32)  # NumPy has no bfloat16

    def predict(batch: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if has_region(batch.shape[1]) and not (inside := batch[:, -1].max((1, 2)) > 0.5).all():
            return _with_gaps(batch, np.asarray(inside), predict)
        score, anomaly_map, *_ = detector(torch.from_numpy(batch).to(own.device))
        return tuple(x.to(torch.promote_types(x.dtype, torch.float32)).cpu().numpy() for x in (score, anomaly_map))  # type: ignore[return-value]

    found = [tiles.predict(image.to("cpu", dtype).numpy(), predict) for image in images]
    if any(score == -np.inf for score, _ in found):
        raise ShapeError("images must have pixels in their region of interest, but got an image without any")
    score, anomaly_map = (_stacked(parts).to(own.device) for parts in zip(*found, strict=True))
    return Prediction(score, anomaly_map, (), *cast(Callable[..., Any], detector.calibration)(score, anomaly_map))


def _with_gaps(
    batch: NDArray[Any], inside: NDArray[np.bool_], predict: Callable[[NDArray[Any]], tuple[NDArray[Any], ...]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Predict the tiles of a batch that have pixels in the region of interest; others have a score of -inf."""
    found = (np.full(len(batch), -np.inf, np.float32), np.full((len(batch), *batch.shape[2:]), -np.inf, np.float32))
    if inside.any():
        for whole, part in zip(found, predict(batch[inside]), strict=True):
            whole[inside] = part
    return found


def _stacked(parts: Sequence[NDArray[Any]]) -> Tensor:
    """Stack arrays; one alone, which may be large, is not copied."""
    return torch.from_numpy(parts[0][None] if len(parts) == 1 else np.stack(parts))
