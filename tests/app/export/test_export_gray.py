"""Exported files take three channels; their runners repeat gray images."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.export_cases import PACKAGES, own_detector
from semflow._channels import in_color
from semflow.app.export import load, open_runner, run_image, save
from semflow.app.export.check import to_input
from semflow.data import Sample, Tiles
from semflow.detectors import Detector
from semflow.errors import ShapeError
from semflow.features import FrozenFeatures
from semflow.recipes import padim, patchcore
from semflow.training import fit

SUFFIXES = {".pt2": "torch", ".onnx": "onnx", ".xml": "openvino"}
GRAY = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), np.uint8))


def gray_network() -> FrozenFeatures:
    torch.manual_seed(0)
    return FrozenFeatures.measured(nn.Conv2d(1, 8, 4, stride=4), 32, mean=(0.45,), std=(0.22,))


def of_tiles(**options: Any) -> Detector:
    samples = [Sample(x, 0, None, f"{k}.png") for k, x in enumerate(torch.rand(6, 1, 50, 70))]
    return fit(patchcore(gray_network(), 32), samples, device="cpu", progress=False, **options)


def assert_equal(one: Any, other: Any) -> None:
    for name in ("score", "anomaly_map"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_gray_images_have_the_scores_of_repeated_ones(suffix: str, tmp_path: Path) -> None:
    if not all(map(find_spec, PACKAGES[SUFFIXES[suffix]])):
        pytest.skip(f"needs {SUFFIXES[suffix]}")
    detector = own_detector()
    path = save(detector, tmp_path / f"a{suffix}", images=GRAY).path
    exported = load(path, "cpu")
    assert exported.metadata.shape == (3, 32, 32)
    assert_equal(exported.predict(GRAY), exported.predict(in_color(GRAY)))
    torch.testing.assert_close(exported.predict(GRAY).score, detector.predict(GRAY / 255).score, rtol=1e-4, atol=1e-4)
    runner, given = open_runner(path), GRAY.numpy()
    assert np.array_equal(runner(given)["score"], runner(in_color(given))["score"])
    with pytest.raises(ShapeError, match=r"uint8 \(B, 3, 32, 32\) with B >= 1, but got"):
        runner(given[:, [0, 0]])


def test_gray_images_with_regions(tmp_path: Path) -> None:
    samples = [Sample(x, 0, None, f"{k}.png") for k, x in enumerate(torch.rand(9, 2, 32, 32).round())]
    detector = fit(padim(gray_network(), 32, channels=4), samples, device="cpu", progress=False)
    exported = load(save(detector, tmp_path / "a.pt2").path, "cpu")
    assert exported.metadata.shape == (4, 32, 32)
    images = torch.cat([torch.rand(2, 1, 32, 32), torch.ones(2, 1, 32, 32).tril()], 1).mul(255).byte()
    images[:, 1:] = 255 * (images[:, 1:] > 0)
    assert_equal(exported.predict(images), exported.predict(in_color(images)))


def test_tiles_of_gray_images(tmp_path: Path) -> None:
    detector = of_tiles(tiles=Tiles(32, 8))
    exported = load(save(detector, tmp_path / "a.pt2").path, "cpu")
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 1, 50, 70), np.uint8))
    assert_equal(exported.predict(image), exported.predict(in_color(image)))
    runner = open_runner(tmp_path / "a.pt2")
    found, expected = (run_image(runner, x[0].numpy()) for x in (image, in_color(image)))
    assert found["score"] == expected["score"]
    torch.testing.assert_close(exported.predict(image).score, detector.predict(image / 255).score, rtol=1e-4, atol=0)


def test_images_to_compare_on_may_be_of_both_kinds() -> None:
    images = [torch.rand(1, 8, 8), torch.rand(3, 8, 8)]
    assert torch.equal(to_input(images, "float32"), torch.stack([in_color(x) for x in images]))
