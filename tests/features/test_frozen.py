"""Guarantees of every frozen backbone, tested with a small network."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.features import FeatureExtractor, FrozenFeatures, ImageNormalization, average_pool

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Pyramid(nn.Module):
    """Network of two maps, with layers that training would change."""

    def __init__(self, form: str = "list") -> None:
        super().__init__()
        self.form = form
        self.first = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.second = nn.Sequential(nn.Conv2d(6, 10, 2, stride=2), nn.BatchNorm2d(10))

    def forward(self, x: Tensor) -> object:
        a = self.first(x)
        b = self.second(a)
        return {"list": [a, b], "tuple": (a, b), "dict": OrderedDict(a=a, b=b), "one": a, "text": "maps"}[self.form]


def pyramid(form: str = "list", **options: object) -> FrozenFeatures:
    torch.manual_seed(0)
    return FrozenFeatures(Pyramid(form), channels=(6, 10), strides=(4, 8), **options)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def state_of(features: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in features.state_dict().items()}


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
def test_frozen_features_return_a_list_for_every_container(form: str) -> None:
    maps = pyramid(form)(images(2, 3, 32, 24))
    assert [tuple(m.shape) for m in maps] == [(2, 6, 8, 6), (2, 10, 4, 3)]
    for m, reference in zip(maps, pyramid()(images(2, 3, 32, 24)), strict=True):
        torch.testing.assert_close(m, reference)


def test_frozen_features_return_a_list_for_a_single_map() -> None:
    features = FrozenFeatures(Pyramid("one"), channels=[6], strides=[4])
    assert [tuple(m.shape) for m in features(images(1, 3, 16, 16))] == [(1, 6, 4, 4)]
    assert features.channels == (6,)
    assert isinstance(features, FeatureExtractor)


def test_frozen_features_are_unchanged_by_training_the_model() -> None:
    features = pyramid(**PLAIN)
    model = nn.ModuleDict({"features": features, "head": nn.Conv2d(6, 1, 1)}).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # without effect: forward records no graph
    before = state_of(features)
    reference = features(images(2, 3, 32, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        loss = model["head"](features(images(4, 3, 32, 32, seed=seed))[0]).square().mean()
        loss.backward()
        optimizer.step()
    assert model["head"].weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in features.state_dict().items())
    for m, r in zip(features(images(2, 3, 32, 32)), reference, strict=True):
        torch.testing.assert_close(m, r, rtol=0, atol=0)


def test_frozen_features_stay_in_eval_mode() -> None:
    features = pyramid()
    assert not any(p.requires_grad for p in features.parameters())
    nn.Sequential(features).train()
    assert not any(m.training for m in features.modules())
    before = state_of(features)
    for module in features.modules():  # like `model.apply(lambda m: m.train())` and BatchNorm helpers
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
            module.train()
    first, second = features(images(4, 3, 32, 32)), features(images(4, 3, 32, 32))
    assert torch.equal(first[0], second[0])  # no dropout
    assert all(torch.equal(tensor, before[name]) for name, tensor in features.state_dict().items())


def test_maps_can_enter_autograd() -> None:
    m = pyramid()(images(1, 3, 16, 16))[0]
    assert not m.requires_grad
    assert not m.is_inference()
    weight = torch.ones(1, requires_grad=True)
    (m * weight).sum().backward()
    torch.testing.assert_close(weight.grad, m.sum().reshape(1))


def test_frozen_features_normalize_images_once() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    features = FrozenFeatures(nn.Identity(), channels=[3], strides=[1], mean=mean, std=std)
    x = images(2, 3, 5, 7)
    expected = np.stack([(x[:, c].numpy() - mean[c]) / std[c] for c in range(3)], axis=1)
    np.testing.assert_allclose(features(x)[0].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert {"image_normalization.mean", "image_normalization.std"} <= set(features.state_dict())


def test_locations_of_maps_are_a_view() -> None:
    for m in pyramid(smoothing=3)(images(2, 3, 32, 24)):
        rows = m.permute(0, 2, 3, 1).reshape(-1, m.shape[1])
        assert rows.data_ptr() == m.data_ptr()


def test_maps_of_an_image_are_independent_of_the_batch() -> None:
    features, x = pyramid(smoothing=3), images(5, 3, 32, 32)
    for whole, alone in zip(features(x), features(x[3:4]), strict=True):
        torch.testing.assert_close(whole[3:4], alone)


def test_few_images_at_a_time_have_the_maps_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    features, x, sizes = pyramid(smoothing=3), images(5, 3, 32, 32), []
    whole = features(x)
    monkeypatch.setattr("semflow.features.frozen._PIXELS", 2 * 32 * 32 + 1)
    features.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    for m, expected in zip(features(x), whole, strict=True):
        torch.testing.assert_close(m, expected)
        assert m.is_contiguous(memory_format=torch.channels_last)
    assert sizes == [2, 2, 1]
    assert [m.shape for m in features(x[:0])] == [(0, *m.shape[1:]) for m in whole]


def test_autocast_computes_maps_in_bfloat16() -> None:
    features, x = pyramid(), images(1, 3, 32, 32)
    reference = features(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = features(x)
    assert [m.dtype for m in features(x)] == [torch.float32] * 2
    assert maps[0].dtype == torch.bfloat16
    torch.testing.assert_close(maps[0].float(), reference[0], rtol=0.05, atol=0.05)


def test_frozen_features_compile_without_graph_breaks() -> None:
    features, x = pyramid(smoothing=3), images(2, 3, 32, 32)
    compiled = torch.compile(features, fullgraph=True, backend="eager")
    for m, r in zip(compiled(x), features(x), strict=True):
        torch.testing.assert_close(m, r)


@given(kernel=st.sampled_from([1, 3, 5]), height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_average_pool_is_the_mean_over_the_window_inside_the_map(
    kernel: int, height: int, width: int, seed: int
) -> None:
    m = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    (pooled,) = average_pool([m], kernel)
    assert pooled.shape == m.shape
    r = kernel // 2
    for i in range(height):
        for j in range(width):
            window = m[:, :, max(0, i - r) : i + r + 1, max(0, j - r) : j + r + 1]
            torch.testing.assert_close(pooled[:, :, i, j], window.mean(dim=(2, 3)))


def test_smoothing_averages_the_maps() -> None:
    x = images(1, 3, 32, 32)
    for m, r in zip(pyramid(smoothing=5)(x), average_pool(pyramid()(x), 5), strict=True):
        torch.testing.assert_close(m, r)


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        (torch.rand(3, 32, 32), "(3, 32, 32)"),
        (torch.rand(1, 2, 32, 32), "(1, 2, 32, 32)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.rand(1, 3, 32, 32) * 255, "divide 8-bit images by 255"),
        ((torch.rand(1, 3, 32, 32) - 0.45) / 0.225, "in [0, 1]"),
        (torch.full((1, 3, 32, 32), torch.nan), "nan"),
    ],
)
def test_frozen_features_reject_invalid_images(bad: Tensor, part: str) -> None:
    with pytest.raises(ShapeError) as caught:
        pyramid()(bad)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "channels", "strides", "part"),
    [
        ("list", (6, 11), (4, 8), "(1, 10, 4, 4)"),  # channels
        ("list", (6, 10), (4, 16), "strides=(4, 16)"),  # strides
        ("list", (6,), (4,), "[(1, 6, 8, 8), (1, 10, 4, 4)]"),  # number
        ("text", (6,), (4,), "str"),  # not a container of maps
    ],
)
def test_frozen_features_reject_undeclared_maps(
    form: str, channels: tuple[int, ...], strides: tuple[int, ...], part: str
) -> None:
    features = FrozenFeatures(Pyramid(form), channels, strides)
    with pytest.raises(ShapeError, match="Pyramid") as caught:
        features(images(1, 3, 32, 32))
    assert part in str(caught.value)


def test_frozen_features_reject_token_sequences() -> None:
    features = FrozenFeatures(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2)), [8], [4])
    with pytest.raises(ShapeError, match=r"\(1, 8, 16\)"):
        features(images(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 2}, "smoothing must be an odd number"),
        ({"smoothing": 0}, "smoothing must be an odd number"),
        ({"reduction": 0}, "reduction must be at least 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"mean": (0.5,)}, "mean and std must have three values"),
    ],
)
def test_frozen_features_reject_invalid_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pyramid(**options)


def test_frozen_features_and_average_pool_reject_invalid_shapes() -> None:
    with pytest.raises(ConfigError, match="one entry per map"):
        FrozenFeatures(Pyramid(), channels=(6, 10), strides=(4,))
    with pytest.raises(ConfigError, match="kernel must be an odd number"):
        average_pool([torch.ones(1, 1, 2, 2)], 2)


def test_repr_shows_normalization_and_channels() -> None:
    assert "0.485" in repr(ImageNormalization())
    assert "channels=(6, 10)" in repr(pyramid())
