"""Poisson: the solution against a dense linear system, exact masks, sizes of the paper, reproducible draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from semflow.errors import ConfigError, ShapeError
from semflow.synthesis import BLEND_KINDS, Poisson, SyntheticAnomalies, poisson_blend


def picture(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((3, rows, columns), np.float32))


def dense_blend(image: np.ndarray, patch: np.ndarray, mixed: bool) -> np.ndarray:
    """Solve Pérez' Eq. 7 for one channel with one dense row a pixel."""
    rows, columns = image.shape
    inside = [(i, j) for i in range(1, rows - 1) for j in range(1, columns - 1)]
    number = {p: k for k, p in enumerate(inside)}
    matrix, right = np.zeros((len(inside),) * 2), np.zeros(len(inside))
    for (i, j), k in number.items():
        for q in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            of_patch, of_image = patch[i, j] - patch[q], image[i, j] - image[q]
            right[k] += of_image if mixed and abs(of_image) > abs(of_patch) else of_patch
            matrix[k, k] += 1
            if q in number:
                matrix[k, number[q]] -= 1
            else:
                right[k] += image[q]
    out = image.copy()
    if inside:
        out[1:-1, 1:-1] = np.linalg.solve(matrix, right).reshape(rows - 2, columns - 2)
    return out


@given(
    st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 2**32 - 1), st.sampled_from([1, 1e-6, 1e6])
)
@settings(max_examples=60, deadline=None)
def test_blend_solves_the_dense_system_and_keeps_the_boundary(
    rows: int, columns: int, mixed: bool, seed: int, size: float
) -> None:
    image, patch = size * np.random.default_rng(seed).random((2, 2, rows, columns))
    out = poisson_blend(image, patch, mixed)
    for channel in (0, 1):
        np.testing.assert_allclose(
            out[channel], dense_blend(image[channel], patch[channel], mixed), rtol=0, atol=1e-10 * size
        )
    edge = np.ones((rows, columns), bool)
    edge[1:-1, 1:-1] = False
    assert np.array_equal(out[:, edge], image[:, edge])


def test_blend_of_an_image_into_itself_and_of_a_shifted_color_changes_nothing() -> None:
    image = np.random.default_rng(0).random((3, 40, 57))
    for mixed in (False, True):
        np.testing.assert_allclose(poisson_blend(image, image + 0.25, mixed), image, atol=1e-12)
    np.testing.assert_allclose(poisson_blend(image, np.zeros_like(image), mixed=True), image, atol=1e-12)


@given(
    st.sampled_from(BLEND_KINDS),
    st.sampled_from([(64, 64), (64, 96), (100, 33), (16, 16), (5, 7), (2, 2), (1, 1)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([Poisson(), Poisson(resize=(0.5, 2.0), patches=4), Poisson(background=(20, 20))]),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_mask_is_true_exactly_where_the_image_changed(
    kind: str, size: tuple[int, int], seed: int, poisson: Poisson, gray: bool
) -> None:
    image, donor = (picture(*size, k)[: 1 if gray else 3].expand(3, -1, -1).clone() for k in (1, 2))
    kept = image.clone(), donor.clone()
    out, mask = poisson(image, donor, kind, np.random.default_rng(seed))
    assert torch.equal(image, kept[0])
    assert torch.equal(donor, kept[1])
    assert out.dtype == torch.float32
    assert torch.equal((out != image).any(0), mask)
    assert mask.any() or min(size) < 16  # a patch of a smaller image may have no interior
    assert out.min() >= 0
    assert out.max() <= 1
    if gray:
        assert (out[0] - out[1]).abs().max() < 1e-6
    again = poisson(image, donor, kind, np.random.default_rng(seed))
    assert torch.equal(out, again[0])
    assert torch.equal(mask, again[1])


def test_sizes_are_gamma_distributed() -> None:
    """The box of one unresized patch inside a large image shows twice 3 % plus Gamma(2, 5 %), within 3 to 40 %."""
    poisson = Poisson(patches=1, resize=(1.0, 1.0))
    image, donor = torch.zeros(3, 200, 200), picture(200, 200, 0)
    halves = []
    for seed in range(300):
        _, mask = poisson(image, donor, "seamless", np.random.default_rng(seed))
        rows, columns = torch.nonzero(mask, as_tuple=True)
        halves.append(((int(rows.max() - rows.min()) + 3) / 400, (int(columns.max() - columns.min()) + 3) / 400))
    # Windows that cross the border of the donor are cut off, so the sizes are at most those of the paper.
    found = np.sort(np.array(halves).ravel())
    expected = np.sort(np.clip(0.03 + stats.gamma(2, scale=0.05).rvs(len(found), random_state=0), 0.03, 0.4))
    assert found.max() <= 0.41
    assert np.median(found) == pytest.approx(np.median(expected), rel=0.12)
    assert found.mean() <= expected.mean() * 1.02


def test_background_keeps_patches_on_the_object() -> None:
    image = torch.full((3, 96, 96), 0.02)
    image[:, 30:66, 30:66] = picture(36, 36, 1)
    touched = [
        Poisson(patches=1, background=(20, 20))(image, image, "seamless", np.random.default_rng(k))[1][
            30:66, 30:66
        ].any()
        for k in range(40)
    ]
    assert all(touched)


def test_one_image_suffices() -> None:
    from semflow.data import Sample

    data = SyntheticAnomalies([Sample(picture(48, 64, 2), 0, None, "a.png")], Poisson(), normal=False)
    assert data[0].label == 1


def test_a_model_that_was_trained_with_it_loads(tmp_path: Path) -> None:
    from semflow import fit, load
    from semflow.data import Sample
    from semflow.recipes import Backbone, Couplings, sanflow

    good = [Sample(picture(32, 32, k), 0, None, f"{k}.png") for k in range(4)]
    poisson = Poisson(patches=4, background=(20, 20))
    detector = sanflow(Backbone("test_efficientnet", "random", (8,)), 32, Couplings(1, 16), synthesis=poisson)
    fit(detector, good, epochs=1, batch_size=2, output=tmp_path / "run", progress=False)
    assert load(tmp_path / "run").provenance.synthesis == poisson


def test_invalid_arguments() -> None:
    image = torch.zeros(3, 8, 8)
    for arguments in ({"width": (0.0, 0.4)}, {"resize": (2.0, 1.0)}, {"patches": 0}, {"kinds": ("small",)}):
        with pytest.raises(ConfigError, match=f"{next(iter(arguments))} must be "):
            Poisson(**arguments)
    with pytest.raises(ConfigError, match="kind must be one of seamless, mixed, but got 'scar'"):
        Poisson()(image, image, "scar", np.random.default_rng(0))
    with pytest.raises(ShapeError, match="image must be"):
        Poisson()(image.double(), image.double(), "mixed", np.random.default_rng(0))
