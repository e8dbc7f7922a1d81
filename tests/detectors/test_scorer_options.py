"""Options of the scorer: blur, weights of the scales, nearest interpolation, and models without weights."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from helpers.fitted_base import make_fitted
from helpers.small_detector import make_images
from semflow.detectors import Scorer
from semflow.errors import ConfigError, ShapeError
from semflow.files.tensors import read_about, save_tensors
from semflow.functional import gaussian_blur, gaussian_kernel
from semflow.training import fit
from semflow.training.checkpoint import load_into

MAPS = [-5 * torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]
WEIGHTS = (0.5, 0.0, 2.0)


def up(x, **options):
    return F.interpolate(x[:, None].double(), size=(32, 32), **{"mode": "bilinear", **options})[:, 0]


def test_weights_multiply_each_scale() -> None:
    offsets = (-0.5, 0.25, -1.0)
    expected = {
        "sum": -sum(w * up(x - c) for w, x, c in zip(WEIGHTS, MAPS, offsets, strict=True)) / 3,
        "product": -sum(w * up(x - c) for w, x, c in zip(WEIGHTS, MAPS, offsets, strict=True)),
        "exp": -torch.log(sum(w * up((x - c).exp()) for w, x, c in zip(WEIGHTS, MAPS, offsets, strict=True)) / 3),
    }
    for aggregate, value in expected.items():
        scorer = Scorer(3, aggregate=aggregate, weights=WEIGHTS)
        scorer.set_maxima(offsets)
        torch.testing.assert_close(scorer(MAPS, (32, 32))[0].double(), value, rtol=1e-5, atol=1e-5)
        plain = Scorer(3, aggregate=aggregate)
        plain.set_maxima(offsets)
        plain.set_weights(WEIGHTS)
        assert torch.equal(plain(MAPS, (32, 32))[0], scorer(MAPS, (32, 32))[0])


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, float("nan"), 1.0)])
def test_invalid_weights_are_refused(weights) -> None:
    with pytest.raises(ConfigError, match="weights must be 3 numbers of at least 0, not all 0, but got"):
        Scorer(3).set_weights(weights)


@pytest.mark.parametrize("aggregate", ["exp", "sum", "product"])
def test_blur_applies_to_the_map_and_the_score_follows(aggregate) -> None:
    plain, _ = Scorer(3, aggregate=aggregate)(MAPS, (32, 32))
    found, score = Scorer(3, top=0, aggregate=aggregate, blur=1.5)(MAPS, (32, 32))
    torch.testing.assert_close(found, gaussian_blur(plain, gaussian_kernel(1.5)))
    torch.testing.assert_close(score, found.flatten(1).amax(1))


def test_nearest_interpolation_repeats_locations() -> None:
    (x,) = MAPS[:1]
    found, _ = Scorer(1, aggregate="sum", offset=0.0, interpolation="nearest")([x], (32, 32))
    assert torch.equal(found, -x.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="blur must be at least 0, but got -1"):
        Scorer(1, blur=-1.0)
    with pytest.raises(ConfigError, match="align_corners must be False for nearest interpolation, but got True"):
        Scorer(1, align_corners=True, interpolation="nearest")
    with pytest.raises(ShapeError, match="maps must have more than 16 rows and columns to blur"):
        Scorer(1, blur=4.0)(MAPS[:1], (16, 16))


def test_model_of_an_earlier_version_has_weights_of_one(build, images, tmp_path) -> None:
    fit(build(), images, epochs=1, output=tmp_path, progress=False)
    path = tmp_path / "model.safetensors"
    about = {name: value for name, value in read_about(path).items() if name != "sha256"}
    save_tensors(path, {k: x for k, x in load_file(path).items() if k != "scorer.weights"}, about)
    assert load_into(build(), tmp_path).scorer.weights.tolist() == [1, 1]


def test_standardized_map_counts_deviations() -> None:
    scorer = Scorer(3, aggregate="sum", standardize=True)
    means, deviations = (-0.5, 0.25, -1.0), (0.5, 2.0, 0.125)
    scorer.set_moments(means, deviations)
    expected = sum(up((m - x) / d) for m, d, x in zip(means, deviations, MAPS, strict=True)) / 3
    torch.testing.assert_close(scorer(MAPS, (32, 32))[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_scale_without_a_deviation_has_no_weight_unless_all_have_none() -> None:
    scorer = Scorer(3, aggregate="sum", standardize=True)
    scorer.set_moments((1.0, 2.0, 3.0), (0.5, 0.0, 2.0))
    assert scorer.weights.tolist() == [2, 0, 0.5]
    assert scorer.offsets.tolist() == [1, 2, 3]
    scorer.set_moments((1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    assert scorer.weights.tolist() == [1, 1, 1]


def test_only_sums_are_standardized() -> None:
    with pytest.raises(ConfigError, match=r"unless both aggregates are sum, but got True with exp and exp$"):
        Scorer(2, standardize=True)
    with pytest.raises(ConfigError, match=r"unless both aggregates are sum, but got True with sum and product$"):
        Scorer(2, aggregate="sum", image_aggregate="product", standardize=True)
    for options in ({"offset": 1.0}, {"weights": (1.0, 2.0)}):
        with pytest.raises(ConfigError, match="standardize must be False if offset or weights are given, but got True"):
            Scorer(2, aggregate="sum", standardize=True, **options)


def test_moments_are_those_of_images_that_the_base_has_not_seen() -> None:
    detector, images = make_fitted(), make_images(10)
    detector.scorer = Scorer(2, aggregate="sum", standardize=True)
    fit(detector, images, progress=False)
    batch = torch.stack([sample.image for sample in images])
    with torch.no_grad():
        for k, p in enumerate(detector.log_probs(batch, leave_out=torch.arange(10))[0]):
            values = p.double().flatten().numpy()
            assert detector.scorer.offsets[k].item() == pytest.approx(values.mean(), rel=1e-5)
            assert detector.scorer.weights[k].item() == pytest.approx(1 / values.std(), rel=1e-5)
