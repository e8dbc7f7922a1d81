"""Gallery compared with a direct search in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.bases import Gallery, GalleryMaps
from semflow.errors import CheckpointError, ShapeError

D = 3


def latents(count, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels + D, 3, 4, generator=generator)


def fitted(z, **options):
    base = Gallery(D, **options).to(z.dtype)
    maps = base.accumulator()
    for part in z.split(2):
        maps.update(part)
    base.fit(maps)
    return base


def truth(x, z, images, left_out=None):
    """Return squared distances of locations and of whole images, one by one."""
    x, z = x.double(), z.double()
    maps, scores = [], []
    for k, one in enumerate(x):
        others = [j for j in range(len(z)) if left_out is None or j != left_out[k]]
        squares = {j: (one[-D:].mean((1, 2)) - z[j, -D:].mean((1, 2))).square().sum() for j in others}
        chosen = sorted(others, key=squares.__getitem__)[:images]
        scores.append(torch.stack([squares[j] for j in chosen]).mean())
        rows = torch.cat([z[j, :-D].flatten(1).T for j in chosen])
        found = [(rows - q).square().sum(1).min() for q in one[:-D].flatten(1).T]
        maps.append(torch.stack(found).view(3, 4))
    return torch.stack(maps), torch.stack(scores)


@given(st.integers(1, 7), st.integers(1, 9), st.sampled_from([1, 5, 40]), st.sampled_from([1, 100, 2**26]))
@settings(max_examples=20, deadline=None)
def test_distances_are_those_of_a_direct_search(count, images, channels, chunk_bytes):
    z, x = latents(count, channels), latents(3, channels, seed=1)
    base = fitted(z, images=images, chunk_bytes=chunk_bytes)
    maps, scores = truth(x, z, images)
    found = base.normality(x)
    torch.testing.assert_close(-found.double(), maps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(base.image_score(x, found).double(), scores, rtol=1e-5, atol=1e-6)


def test_leaving_out_an_image_searches_the_others():
    z = latents(6)
    found = fitted(z, images=2).normality(z[1:4], leave_out=torch.tensor([1, 2, 3]))
    torch.testing.assert_close(-found.double(), truth(z[1:4], z, 2, [1, 2, 3])[0], rtol=1e-5, atol=1e-5)


def test_images_far_from_the_origin_keep_their_distances():
    z, x = latents(5), latents(2, seed=1)
    found = fitted(z + 1000).normality(x + 1000)
    torch.testing.assert_close(-found.double(), truth(x + 1000, z + 1000, 50)[0], rtol=1e-3, atol=1e-3)


def test_other_grids_may_be_searched_and_images_are_independent():
    base, x = fitted(latents(4)), torch.randn(2, 5 + D, 6, 2)
    found = base.normality(x)
    assert found.shape == (2, 6, 2)
    torch.testing.assert_close(found[1:], base.normality(x[1:]))


def test_gradients_are_those_of_the_squared_distance():
    base, x = fitted(latents(4).double(), images=2), latents(1, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(base.normality, x)


def test_merged_maps_are_those_of_all_images():
    z = latents(5)
    first, second = GalleryMaps(D), GalleryMaps(D)
    first.update(z[:2])
    second.update(z[2:])
    first.merge(second)
    base = Gallery(D)
    base.fit(first)
    assert torch.equal(base.locations, fitted(z).locations)


def test_state_loads_into_a_new_base():
    base, new, x = fitted(latents(4)), Gallery(D), latents(2, seed=1)
    new.load_state_dict(base.state_dict())
    assert torch.equal(new.normality(x), base.normality(x))
    state = base.state_dict() | {"descriptors": torch.zeros(3, D)}
    with pytest.raises(CheckpointError, match="must be of the same images"):
        new.load_state_dict(state)


def test_errors_name_what_is_wrong():
    with pytest.raises(ShapeError, match="fitted before use"):
        Gallery(D).normality(latents(1))
    with pytest.raises(ShapeError, match=r"z must be \(B, 8, H, W\)"):
        fitted(latents(2)).normality(latents(1, channels=6))
    with pytest.raises(ShapeError, match="more than 3 channels"):
        GalleryMaps(D).update(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ShapeError, match="at least 2 images"):
        fitted(latents(1)).normality(latents(1), leave_out=torch.tensor([0]))
    with pytest.raises(ShapeError, match="at least one image"):
        Gallery(D).fit(GalleryMaps(D))
    assert "stored=4" in repr(fitted(latents(4)))
