"""Image pyramids, rotations and pooled features."""

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from semflow.errors import ConfigError
from semflow.features import (
    FrozenFeatures,
    ImagePyramid,
    PooledViews,
    average_pool,
    fitting_strides,
    rotations,
)


def identity() -> FrozenFeatures:
    """Return a backbone whose map is the image."""
    return FrozenFeatures(nn.Identity(), channels=(3,), strides=(1,), mean=(0, 0, 0), std=(1, 1, 1))


def test_image_pyramid_halves_the_image_size() -> None:
    x = torch.rand(2, 3, 16, 24)
    features = ImagePyramid(identity(), levels=3)
    maps = features(x)
    assert (features.channels, features.strides) == ((3, 3, 3), (1, 2, 4))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6)]
    assert torch.equal(maps[0], x)
    for m in maps[1:]:
        torch.testing.assert_close(m.mean(), x.mean(), atol=0.03, rtol=0)
    flat = torch.full((1, 3, 16, 16), 0.25)
    assert all(torch.allclose(m, flat[..., :1, :1]) for m in features(flat))


@given(st.integers(1, 12), st.integers(0, 11))
@settings(max_examples=25)
def test_rotations_turn_counterclockwise_by_equal_angles(count, k) -> None:
    """A bright spot moves as the rotation matrix predicts, in the direction of rot90."""
    k %= count
    x = torch.zeros(1, 3, 65, 65)
    x[..., 30:33, 46:49] = 1.0  # 15 right of the center, 1 above
    turned = rotations(x, count)[k][0, 0]
    rows, columns = torch.meshgrid(torch.arange(65.0), torch.arange(65.0), indexing="ij")
    row, column = ((turned * w).sum() / turned.sum() - 32 for w in (rows, columns))
    angle = 2 * math.pi * k / count
    expected_column = 15 * math.cos(angle) - 1 * math.sin(angle)
    expected_up = 15 * math.sin(angle) + 1 * math.cos(angle)
    assert column.item() == pytest.approx(expected_column, abs=0.3)
    assert -row.item() == pytest.approx(expected_up, abs=0.3)


def test_rotations_stay_in_range_and_quarter_turns_are_exact() -> None:
    x = torch.rand(2, 3, 12, 20)
    turned = rotations(x, 6)
    assert torch.equal(turned[0], x)
    assert torch.equal(turned[3], x.rot90(2, (2, 3)))
    assert all(t.shape == x.shape and t.min() >= 0 and t.max() <= 1 for t in turned)
    square = torch.rand(1, 3, 9, 9)
    for k, t in enumerate(rotations(square, 4)):
        assert torch.equal(t, square.rot90(k, (2, 3)))


def test_pooled_views_hold_the_maps_of_one_view_at_a_time() -> None:
    network = nn.Conv2d(3, 4, 1)
    maps: list[weakref.ref[torch.Tensor]] = []

    def watch(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        assert all(ref() is None for ref in maps)
        maps.append(weakref.ref(output))

    features = FrozenFeatures(network, channels=(4,), strides=(1,))
    network.register_forward_hook(watch)
    PooledViews(features, views=4)(torch.rand(1, 3, 8, 8))
    assert len(maps) == 4


def test_pooled_views_average_each_rotation() -> None:
    x = torch.rand(2, 3, 16, 16)
    (pooled,) = PooledViews(ImagePyramid(identity(), levels=2), views=3)(x)
    assert pooled.shape == (2, 6, 3, 1)
    for view, turned in enumerate(rotations(x, 3)):
        torch.testing.assert_close(pooled[:, :3, view, 0], turned.mean((2, 3)))


def test_reduction_keeps_every_second_location() -> None:
    x = torch.rand(1, 3, 9, 8)
    features = FrozenFeatures(nn.Identity(), (3,), (1,), (0, 0, 0), (1, 1, 1), smoothing=3, reduction=2)
    (m,) = features(x)
    assert features.strides == (2,)
    assert m.shape == (1, 3, 5, 4)
    torch.testing.assert_close(m, average_pool([x], 3)[0][..., ::2, ::2])


def test_fitting_strides_of_a_transformer_is_its_patch_size() -> None:
    assert fitting_strides("test_vit", (4, 8)) == (16,)
    assert fitting_strides("test_efficientnet", (4, 8)) == (4, 8)


def test_views_reject_numbers_below_one() -> None:
    for build in (lambda: ImagePyramid(identity(), 0), lambda: PooledViews(identity(), 0)):
        with pytest.raises(ConfigError, match="must be at least 1"):
            build()


def test_views_keep_the_backbone_frozen() -> None:
    features = PooledViews(ImagePyramid(identity())).train()
    assert not features.features.features.training
    assert not any(p.requires_grad for p in features.parameters())
