"""Images of a block are sent in one channel if all are gray, and have the scores of RGB copies."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.gray_cases import in_rgb, textures
from semflow.app.scale.pipeline import _decode, _Worker
from semflow.data import load_image

VALUES = textures(3)


def row(folder: Path, *kinds: str) -> dict[str, Any]:
    for number, kind in enumerate(kinds):
        path, values = folder / f"{number}.png", VALUES[number]
        if kind == "broken":
            path.write_text("no image")
        else:
            Image.fromarray(values if kind == "gray" else in_rgb(values)).save(path)
    return {"names": [os.fsencode(f"{number}.png") for number in range(len(kinds))]}


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("kinds", [("gray", "gray"), ("gray", "broken", "gray"), ("gray", "rgb"), ("rgb", "broken")])
def test_block_is_gray_if_all_images_are(kinds: tuple[str, ...], resize: Any, tmp_path: Path) -> None:
    region = int(resize == "pad")
    shape = (3 + region, 24, 32)
    found = _decode(row(tmp_path, *kinds), tmp_path, shape, resize)
    assert found["images"].shape == (len(kinds), (3 if "rgb" in kinds else 1) + region, 24, 32)
    assert [bool(error) for error in found["errors"]] == [kind == "broken" for kind in kinds]
    for number, kind in enumerate(kinds):
        values = torch.from_numpy(found["images"][number]).float().div(255)
        expected = load_image(tmp_path / f"{number}.png", (24, 32), resize) if kind != "broken" else torch.zeros(shape)
        assert torch.equal(values, expected if "rgb" in kinds else expected[2:])


def test_images_of_their_own_size(tmp_path: Path) -> None:
    row(tmp_path, "gray", "rgb")
    worker: Any = _Worker.__new__(_Worker)
    worker.root, worker.skip, worker.paged = tmp_path, False, 0
    first, second = (images for _, images in _Worker._images(worker, ("0.png", "1.png"), ["", ""]))
    assert torch.equal(first, torch.from_numpy(VALUES[0])[None, None].float().div(255))
    assert np.array_equal(second[0, 2].mul(255).round().numpy(), VALUES[1])
