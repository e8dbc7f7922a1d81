"""Backbones of timm: their maps, the order of the maps, and errors."""

import copy

import pytest
import torch
from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.features import TimmFeatures, available_strides
from semflow.features.timm_module import build, load_timm


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_wide_resnet50_has_the_maps_of_the_paper() -> None:
    features = TimmFeatures("wide_resnet50_2", weights="random")
    assert features.channels == (512, 1024, 2048)
    assert features.strides == (8, 16, 32)
    assert [tuple(m.shape) for m in features(images(2, 3, 64, 64))] == [
        (2, 512, 8, 8),
        (2, 1024, 4, 4),
        (2, 2048, 2, 2),
    ]
    torch.testing.assert_close(features.image_normalization.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_maps_equal_those_of_the_complete_model() -> None:
    complete = build("test_resnet", seed=3).eval()
    features = TimmFeatures("test_resnet", weights="random", seed=3)
    x = images(2, 3, 64, 64)
    with torch.no_grad():  # with this backbone's constants
        expected = complete.forward_intermediates((x - 0.5) / 0.5, indices=[2, 3, 4], intermediates_only=True)
    for m, r in zip(features(x), expected, strict=True):
        torch.testing.assert_close(m, r, rtol=1e-4, atol=1e-5)


def test_maps_have_the_order_of_strides_or_layers() -> None:
    x = images(1, 3, 64, 64)
    up = TimmFeatures("test_resnet", "random", strides=(4, 16))(x)
    features = TimmFeatures("test_resnet", "random", strides=(16, 4))
    assert (features.strides, features.channels) == ((16, 4), (192, 32))
    for m, r in zip(reversed(features(x)), up, strict=True):
        torch.testing.assert_close(m, r)
    by_layer = TimmFeatures("test_resnet", "random", layers=(3, -4))
    assert by_layer.strides == (16, 4)


@pytest.mark.parametrize("backbone", ["test_resnet", "tf_efficientnet_lite0", "test_convnext"])
def test_stages_above_the_deepest_map_do_not_run(backbone: str) -> None:
    stride8 = TimmFeatures(backbone, "random", strides=(8,))
    ran: list[nn.Module] = []
    for module in stride8.network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: ran.append(o.shape[-1]))
    stride8(images(1, 3, 64, 64))
    assert min(ran) == 8
    assert sum(p.numel() for p in stride8.parameters()) < 0.3 * sum(p.numel() for p in build(backbone).parameters())


def test_random_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a = TimmFeatures("test_resnet", "random", seed=1)
    assert torch.equal(torch.rand(3), expected)
    b, other = TimmFeatures("test_resnet", "random", seed=1), TimmFeatures("test_resnet", "random", seed=2)
    x = images(1, 3, 32, 32)
    assert torch.equal(a(x)[0], b(x)[0])
    assert not torch.allclose(a(x)[0], other(x)[0])


def test_folding_keeps_the_maps_and_copies_are_equal() -> None:
    x = images(2, 3, 64, 64)
    folded = TimmFeatures("tf_efficientnet_lite0", "random")
    plain = TimmFeatures("tf_efficientnet_lite0", "random", fold=False)
    assert any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for m, r, c in zip(folded(x), plain(x), copy.deepcopy(folded)(x), strict=True):
        torch.testing.assert_close(m, r, rtol=1e-4, atol=1e-5)
        assert torch.equal(m, c)


def test_timm_features_are_unchanged_by_training_the_model() -> None:
    features = TimmFeatures("tf_efficientnet_lite0", "random", fold=False, strides=(8,))
    head = nn.Conv2d(40, 1, 1)
    model = nn.Sequential(features, nn.Identity()).train()
    before = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1, weight_decay=0.1)
    head(features(images(2, 3, 64, 64))[0]).mean().backward()
    optimizer.step()
    assert head.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in features.state_dict().items())


def test_state_dict_loads_into_another_instance() -> None:
    a = TimmFeatures("tf_efficientnet_lite0", "random", seed=1)
    b = TimmFeatures("tf_efficientnet_lite0", "random", seed=2)
    b.load_state_dict(a.state_dict())
    x = images(1, 3, 64, 64)
    assert torch.equal(a(x)[2], b(x)[2])


def test_vision_transformer_gives_maps_of_blocks() -> None:
    features = TimmFeatures("vit_tiny_patch16_224", weights="random", layers=(3, 7, 11))
    assert features.channels == (192, 192, 192)
    assert features.strides == (16, 16, 16)
    complete = build("vit_tiny_patch16_224").eval()
    x = images(2, 3, 224, 224)
    with torch.no_grad():
        expected = complete.forward_intermediates((x - 0.5) / 0.5, indices=[3, 7, 11], intermediates_only=True)
    for m, r in zip(features(x), expected, strict=True):
        torch.testing.assert_close(m, r, rtol=1e-4, atol=1e-5)
    assert [tuple(m.shape) for m in features(images(1, 3, 96, 64))] == [(1, 192, 6, 4)] * 3
    with pytest.raises(ShapeError, match=r"multiples of 16, .* but got 100 x 64; try 112 x 64"):
        features(images(1, 3, 100, 64))


def test_vision_transformer_selects_blocks_by_repeated_strides() -> None:
    features = TimmFeatures("test_vit", "random", strides=(16, 16), image_size=64)
    assert features.layers == (2, 5)
    early = TimmFeatures("test_vit", "random", layers=(0,), image_size=64)
    assert sum(p.numel() for p in early.parameters()) < 0.5 * sum(p.numel() for p in features.parameters())
    assert early(images(1, 3, 64, 64))[0].shape == (1, 64, 4, 4)


def test_maps_of_channels_last_networks_are_permuted() -> None:
    swin = TimmFeatures("swin_tiny_patch4_window7_224", "random", strides=(4,))  # returns (B, H, W, C)
    assert [tuple(m.shape) for m in swin(images(1, 3, 64, 96))] == [(1, 96, 16, 24)]


def test_network_of_fixed_size_rejects_other_sizes() -> None:
    features = TimmFeatures("levit_128s", "random", strides=(16,), image_size=96)
    assert features(images(1, 3, 96, 96))[0].shape == (1, 128, 6, 6)
    with pytest.raises(ShapeError, match=r"images must be 96 x 96 .* resize them or pass image_size=\(128, 128\)"):
        features(images(1, 3, 128, 128))


def test_available_strides_lists_strides_in_order() -> None:
    assert available_strides("wide_resnet50_2") == (2, 4, 8, 16, 32)
    assert available_strides("convnext_atto") == (4, 8, 16, 32)
    assert available_strides("vit_tiny_patch16_224") == (16,)


@pytest.mark.parametrize(
    ("backbone", "options", "part"),
    [
        ("wide_resnet50", {}, "wide_resnet50_2"),
        ("zzzz", {}, "timm.list_models()"),
        ("test_resnet.imagenet", {}, "r160_in1k"),
        ("test_resnet", {"strides": (8, 64)}, "(2, 4, 8, 16, 32)"),
        ("test_resnet", {"strides": (8, 8)}, "distinct"),
        ("test_resnet", {"strides": ()}, "but got ()"),
        ("test_resnet", {"layers": (5,)}, "0 to 4"),
        ("test_resnet", {"layers": (4, -1)}, "distinct"),
        ("test_resnet", {"smoothing": 2}, "smoothing"),
        ("vit_tiny_patch16_224", {}, "strides=(16, 16, 16)"),
        ("vit_tiny_patch16_224", {"layers": (12,)}, "0 to 11"),
        ("crossvit_tiny_240", {}, "(12, 17)"),
    ],
)
def test_timm_features_reject_invalid_options(backbone: str, options: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TimmFeatures(backbone, "random", **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_timm_features_reject_backbones_without_feature_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: object) -> nn.Module:
        raise RuntimeError("features_only not\nimplemented for this model")

    monkeypatch.setattr(load_timm(), "create_model", fail)
    with pytest.raises(ConfigError, match=r"features_only, but got 'resnet10t' with the error 'features_only not"):
        TimmFeatures("resnet10t", "random")


def test_timm_features_report_sizes_that_the_network_rejects() -> None:
    features = TimmFeatures("test_maxvit", "random", strides=(4,), image_size=100)
    with pytest.raises(ShapeError, match=r"that test_maxvit supports, but got 100 x 100 \(.*\); try a multiple of 32"):
        features(images(1, 3, 100, 100))


@pytest.mark.parametrize("wrong", [{"smoothing": 2}, {"reduction": 0}])
def test_timm_features_check_pooling_before_downloading(wrong: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> None:
        raise AssertionError("weights were downloaded")

    monkeypatch.setattr("semflow.features.timm_features._network", fetch)
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} must be"):
        TimmFeatures("resnet18", "hub", **wrong)
