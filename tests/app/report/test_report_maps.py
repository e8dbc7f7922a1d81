import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from semflow.app.report import load_map, save_map
from semflow.errors import ConfigError, DataError, ShapeError

maps = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e4, 1e4, width=32)
)


@settings(max_examples=40)
@given(maps)
def test_png_is_exact_to_half_a_level(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    path = save_map(tmp_path_factory.mktemp("maps") / "a.png", values)
    span = float(np.ptp(values)) or 1.0
    np.testing.assert_allclose(load_map(path), values, atol=0.51 * span / 65535 + 1e-3 * (np.abs(values).max() > 1e3))
    with Image.open(path) as picture:
        assert picture.mode.startswith("I;16")
        assert picture.size == values.shape[::-1]


def test_npy_is_exact(tmp_path: Path) -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    path = save_map(tmp_path / "a.jpg.npy", values)
    np.testing.assert_array_equal(np.load(path), values.numpy())
    assert np.load(path).dtype == np.float32
    np.testing.assert_array_equal(load_map(path), values.numpy())


def test_png_scale_is_written_beside_it(tmp_path: Path) -> None:
    path = save_map(tmp_path / "a.png", np.array([[-1.0, 0.5, 9.0]]), value_range=(0.0, 2.0))
    assert json.loads((tmp_path / "a.png.json").read_text()) == {"minimum": 0.0, "maximum": 2.0, "levels": 65535}
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), [[0, 16384, 65535]])


def test_constant_map_survives_png(tmp_path: Path) -> None:
    np.testing.assert_array_equal(load_map(save_map(tmp_path / "a.png", np.full((2, 3), 7.0))), np.full((2, 3), 7.0))


def test_save_map_rejects_invalid_maps_without_writing(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"\(1, 2, 3\)"):
        save_map(tmp_path / "a.npy", np.zeros((1, 2, 3)))
    with pytest.raises(ConfigError, match=r"\.npy or \.png"):
        save_map(tmp_path / "a.tif", np.zeros((2, 3)))
    with pytest.raises(ShapeError, match="NaN"):
        save_map(tmp_path / "a.png", np.full((2, 3), np.nan), value_range=(0.0, 1.0))
    assert list(tmp_path.iterdir()) == []


def test_load_map_rejects_other_files(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "photo.png")
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    for name in ("photo.png", "broken.npy", "absent.npy"):
        with pytest.raises(DataError, match=name):
            load_map(tmp_path / name)
