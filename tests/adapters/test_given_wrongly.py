"""with_statistics, with_memory and Detector reject what they are given wrongly, and name it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

import semflow
from semflow.adapters import CallableFlow, as_flow, with_memory, with_statistics
from semflow.bases import Memory, SemanticGaussian, StandardNormal
from semflow.errors import ConfigError, ShapeError
from semflow.flows import AffineCoupling
from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance, StatisticsNetwork
from semflow.objectives import PRESETS

B, C = 3, 6


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def affine() -> AffineTransform:
    return AffineTransform(torch.zeros(C, requires_grad=True), torch.full((C,), 2.0, requires_grad=True))


def of_features() -> InverseGammaVariance:
    return InverseGammaVariance(FeatureStatisticsNetwork(C), mode=1.0)


def given_wrongly() -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    x, image, mask = noise(B, C, 4, 6), torch.rand(B, 3, 32, 48), torch.zeros(B, 32, 48)
    nan = x.clone()
    nan[1, 2, 3, 4] = float("nan")
    network = FeatureStatisticsNetwork(C)
    model = with_statistics(affine(), of_features())
    on_image = with_statistics(affine(), InverseGammaVariance(StatisticsNetwork(stride=4)))
    two = with_statistics([affine(), affine()], None)
    memory = with_memory(affine())
    return {
        "NaN features": (lambda: model.loss(nan), ShapeError, "features must be finite, but got NaN"),
        "NaN in a map": (lambda: model.anomaly_map(nan), ShapeError, "features must be finite, but got NaN"),
        "NaN in a likelihood": (lambda: model.log_prob(nan), ShapeError, "features must be finite, but got NaN"),
        "infinite features": (lambda: two.loss([x, x / 0]), ShapeError, r"features\[1\] must be finite"),
        "NaN to remember": (lambda: memory.remember([x, nan]), ShapeError, "features must be finite"),
        "one map": (
            lambda: model.loss(x[0]),
            ShapeError,
            r"features must be float maps \(B, C, H, W\), but got \(6, 4",
        ),
        "integers": (lambda: model.loss(x.long()), ShapeError, "features must be float maps .* of torch.int64"),
        "an array": (lambda: two.loss([x, x.numpy()]), ShapeError, r"features\[1\] must be float maps .*ndarray"),
        "no samples": (lambda: model.loss(x[:0]), ShapeError, r"features must be float maps .*\(0, "),
        "other batches": (lambda: two.loss([x, x[:1]]), ShapeError, r"features\[1\] must hold 3 samples, .* but got 1"),
        "bytes": (lambda: on_image.loss(x, image=image * 255), ShapeError, "image must lie in .*divide bytes by 255"),
        "uint8": (lambda: on_image.loss(x, image=(image * 255).byte()), ShapeError, "image must be float .*uint8"),
        "unused bytes": (lambda: model.anomaly_map(x, image=image * 255), ShapeError, "image must lie in"),
        "NaN image": (lambda: on_image.loss(x, image=image * float("nan")), ShapeError, "image must lie in .*NaN"),
        "alpha channel": (lambda: on_image.loss(x, image=image[:, [0, 1, 2, 2]].round()), ShapeError, "of 1 or 3 chan"),
        "NaN mask": (
            lambda: model.loss(x, anomaly_mask=mask * float("nan")),
            ShapeError,
            "anomaly_mask must be finite",
        ),
        "channel of a mask": (lambda: model.loss(x, anomaly_mask=mask[:, None]), ShapeError, "anomaly_mask must be"),
        "size of a mask": (
            lambda: on_image.loss(x, image=image, anomaly_mask=mask[:, 1:]),
            ShapeError,
            "anomaly_mask must have the size 32 x 48 or 4 x 6, but got 31 x 48",
        ),
        "class of a flow": (lambda: with_statistics(AffineCoupling, None), ConfigError, "got the class AffineCoupling"),
        "class in a list": (lambda: with_statistics([AffineCoupling], None), ConfigError, "got the class AffineCoupl"),
        "class of a head": (
            lambda: with_statistics(affine(), InverseGammaVariance),
            ConfigError,
            "head must be of class VarianceHead, but got the class InverseGammaVariance; make an instance of it",
        ),
        "bare network": (
            lambda: with_statistics(affine(), network),
            ConfigError,
            r"but got FeatureStatisticsNetwork; wrap a network, InverseGammaVariance\(network\)",
        ),
        "class of a base": (
            lambda: with_statistics(affine(), None, StandardNormal),
            ConfigError,
            "base must be of class Base, but got the class StandardNormal; make an instance of it",
        ),
        "objective": (
            lambda: with_statistics(affine(), None, None, PRESETS),
            ConfigError,
            "objective must be of class Objective",
        ),
        "class of a memory": (lambda: with_memory(affine(), Memory), ConfigError, "got the class Memory; make an inst"),
        "no memory": (lambda: with_memory(affine(), StandardNormal()), ConfigError, "memory must be of class FittedB"),
        "log_det": (lambda: with_memory(affine(), log_det="yes"), ConfigError, "log_det must be True or False"),
        "size": (lambda: model.anomaly_map(x, size=(0, 4)), ConfigError, "size must be at least 1"),
        "name of a size": (lambda: model.anomaly_map(x, size="big"), ConfigError, "size must be"),
        "detector's head": (
            lambda: semflow.Detector(Extractor(), [as_flow(affine())], SemanticGaussian(), network),
            ConfigError,
            "head must be of class VarianceHead, but got FeatureStatisticsNetwork",
        ),
        "detector's flow": (
            lambda: semflow.Detector(Extractor(), as_flow(affine()), SemanticGaussian(), None),
            ConfigError,
            "flows must be a list, one per scale, but got one TransformFlow",
        ),
        "detector's features": (
            lambda: semflow.Detector(network, [as_flow(affine())], StandardNormal()),
            ConfigError,
            "features must have channels and strides, but got FeatureStatisticsNetwork; wrap a network, FrozenFeatures",
        ),
    }


class Extractor(nn.Module):
    channels, strides = (C,), (8,)


@pytest.mark.parametrize("name", list(given_wrongly()))
def test_what_is_given_wrongly_is_rejected(name: str) -> None:
    make, kind, message = given_wrongly()[name]
    with pytest.raises(kind, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_mask_of_bytes_and_of_booleans_count_as_ones() -> None:
    features, mask = noise(B, C, 4, 6), torch.zeros(B, 32, 48)
    mask[0, 4:20, 8:24] = 1
    model = with_statistics(affine(), of_features()).eval()
    right = model.loss(features, anomaly_mask=mask).total
    assert not torch.equal(model.loss(features).total, right)
    for given in (mask * 255, (mask * 255).byte(), mask > 0):
        assert torch.equal(model.loss(features, anomaly_mask=given).total, right)


def test_anomaly_map_includes_the_log_det_of_location_flows_by_default() -> None:
    features = noise(B, C, 4, 6)
    model = with_statistics(affine(), of_features())
    with_log_det, without = (model.anomaly_map(features, log_det=value) for value in (True, False))
    assert torch.equal(model.anomaly_map(features), with_log_det)
    assert not torch.allclose(without, with_log_det)
    whole = CallableFlow(lambda x: (2 * x, x[:, 0, 0, 0] * 0), "sample", lambda z: z / 2)
    sample = with_statistics(whole, of_features())
    assert torch.equal(sample.anomaly_map(features), sample.anomaly_map(features, log_det=False))
