"""The detector as a whole: independence of the batch, calibration on training data, the score's formula."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from semflow.bases import StandardNormal
from semflow.detectors import Detector, Scorer
from semflow.errors import ConfigError, DataError, ShapeError
from semflow.features import FrozenFeatures
from semflow.flows import Standardize
from semflow.metrics import aupro, auroc, f1_max
from semflow.training import calibrate, evaluate, fit, refit


def perturb(detector: Detector, seed: int = 1) -> Detector:
    """Move the weights away from their initialization, which hides errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in detector.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return detector


def stack(images):
    return torch.stack([s.image for s in images])


@pytest.mark.parametrize("score_log_det", [False, True])
def test_score_is_independent_of_the_batch(build, images, score_log_det) -> None:
    detector = perturb(build(score_log_det=score_log_det))
    detector.fit_score([stack(images[:5])])
    batch = stack(images)
    together = detector.predict(batch)
    for i in range(len(batch)):
        alone = detector.predict(batch[i : i + 1])
        torch.testing.assert_close(alone.score[0], together.score[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[i], rtol=1e-5, atol=1e-6)
        for a, b in zip(alone.variance, together.variance, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-5, atol=1e-6)


def test_predict_restores_modes_and_keeps_statistics(build, images) -> None:
    """A user may keep some modules in eval mode while others are trained."""
    detector = build().train()
    detector.head.eval()
    modes = {name: module.training for name, module in detector.named_modules()}
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    detector.predict(stack(images))
    assert detector.training
    assert not detector.features.training
    for name, value in detector.state_dict().items():
        assert torch.equal(before[name], value), name
    detector.fit_score([stack(images)])
    assert {name: module.training for name, module in detector.named_modules()} == modes


def test_predict_rejects_invalid_images(build) -> None:
    detector = build()
    for wrong in (torch.rand(3, 32, 32), torch.rand(1, 5, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(ShapeError, match="images must be float"):
            detector.predict(wrong)


def test_score_follows_its_formula(build, images) -> None:
    """-log mean_k upsample(exp(log p_k / C - max over training)), and of the mean over the top pixels."""
    detector = perturb(build())
    train, test = stack(images[:6]), stack(images[6:])
    detector.fit_score([train[:4], train[4:]])
    detector.eval()
    with torch.no_grad():
        expected = torch.zeros(len(test), 32, 32)
        for k in range(2):
            per_dimension = []
            for batch in (train, test):
                latents = detector.encode(batch)[k]
                a, b = latents.statistics.alpha[:, 0].double(), latents.statistics.beta[:, 0].double()
                c = latents.z.shape[1]
                q = latents.z.double().square().sum(1)
                log_p = -c / 2 * (math.log(2 * math.pi) + b.log() - torch.digamma(a)) - a / (2 * b) * q
                per_dimension.append(log_p / c)
            likelihood = torch.exp(per_dimension[1] - per_dimension[0].max())
            up = F.interpolate(likelihood[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
            expected += up.float() / 2
    prediction = detector.predict(test)
    torch.testing.assert_close(prediction.anomaly_map, -expected.log(), rtol=1e-4, atol=1e-4)
    least = np.sort(expected.flatten(1).numpy(), axis=1)[:, :10].mean(1)  # 1 % of 1024 pixels
    np.testing.assert_allclose(prediction.score.numpy(), -np.log(least), rtol=1e-4)


def test_fit_score_is_independent_of_the_batching(build, images) -> None:
    detector = perturb(build())
    detector.fit_score([stack(images[:6])])
    offsets, bounds = detector.scorer.offsets.clone(), detector.map_range
    detector.predict(stack(images[6:]) * 0.1)  # scoring must leave no trace
    detector.fit_score([stack(images[:1]), stack(images[1:6])])
    torch.testing.assert_close(detector.scorer.offsets, offsets)
    assert detector.map_range == pytest.approx(bounds, abs=1e-4)
    assert bounds[0] < bounds[1]


@given(
    st.integers(1, 3),
    st.sampled_from([0.0, 0.01, 0.25, 1.0]),
    st.sampled_from(["exp", "sum", "product"]),
    st.integers(0, 2**31 - 1),
)
@settings(deadline=None, max_examples=30)
def test_less_likely_locations_do_not_lower_the_score(scales, top, aggregate, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    scorer = Scorer(scales, top=top, aggregate=aggregate)
    log_probs = [-torch.rand(2, 4, 4, generator=generator) * 5 for _ in range(scales)]
    before, before_score = scorer(log_probs, (16, 16))
    worse = [p.clone() for p in log_probs]
    worse[0][1, 2, 3] -= 1.0
    after, after_score = scorer(worse, (16, 16))
    assert (after >= before - 1e-6).all()
    assert torch.equal(after[0], before[0])
    assert (after_score >= before_score - 1e-6).all()


def test_scorer_extremes() -> None:
    scorer = Scorer(1, top=0)
    for aggregate in ("exp", "sum", "product"):
        maps, scores = Scorer(1, aggregate=aggregate)([torch.full((1, 2, 2), -1e30)], (4, 4))
        assert torch.isfinite(maps).all()
        assert torch.isfinite(scores).all()
    # 25 and 30 nats away is not the same, though 1 - exp(-25) and 1 - exp(-30) are in float32.
    maps, scores = Scorer(1)([torch.tensor([-25.0, -30.0]).view(2, 1, 1)], (4, 4))
    torch.testing.assert_close(scores, torch.tensor([25.0, 30.0]))
    assert torch.isfinite(scorer([torch.full((1, 2, 2), 1e30)], (4, 4))[0]).all()
    with pytest.raises(ConfigError, match="top must be"):
        Scorer(1, top=2)
    with pytest.raises(ConfigError, match="aggregate"):
        Scorer(1, aggregate="max")


def test_prepare_fits_the_standardization_with_its_log_det(build, images) -> None:
    detector = build()
    detector.prepare([stack(images[:4]), stack(images[4:])])
    maps = detector.features(stack(images))
    for flow, x in zip(detector.flows, maps, strict=True):
        standardize = flow[0]
        assert isinstance(standardize, Standardize)
        z, log_det = standardize(x)
        torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(z.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(log_det[0, 0, 0], -standardize.std.log().sum())


def test_detector_without_a_head_and_with_wrong_number_of_flows() -> None:
    features = FrozenFeatures(nn.Conv2d(3, 4, 4, stride=4), channels=(4,), strides=(4,))
    detector = Detector(features, [Standardize(4)], StandardNormal())
    with pytest.raises(ConfigError, match="flows must be 1"):
        Detector(features, [], StandardNormal())
    assert detector.encode(torch.rand(1, 3, 16, 16))[0].statistics is None
    assert detector.trainable() == []


def test_evaluate_equals_the_metrics_of_predictions(build, images) -> None:
    detector = perturb(build())
    test = list(images)
    for i in (7, 8, 9):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[8:20, 4 : 10 + i] = True
        image = torch.where(mask, 1 - test[i].image, test[i].image)
        test[i] = test[i]._replace(label=1, anomaly_mask=mask, image=image)
    prediction = detector.predict(stack(test))
    labels, masks = torch.tensor([s.label for s in test]), torch.stack([s.anomaly_mask for s in test])
    result = evaluate(detector, test, batch_size=3)
    assert list(result) == ["image_auroc", "pixel_auroc", "aupro", "image_f1_max"]
    assert result["image_auroc"] == pytest.approx(auroc(prediction.score, labels))
    assert result["pixel_auroc"] == pytest.approx(auroc(prediction.anomaly_map, masks), abs=1e-4)
    assert result["aupro"] == pytest.approx(aupro(prediction.anomaly_map, masks), abs=1e-3)
    assert result["image_f1_max"] == pytest.approx(f1_max(prediction.score, labels))

    test[0] = test[0]._replace(anomaly_mask=None)
    partial = evaluate(detector, test)
    assert partial["pixel_auroc"] is None
    assert partial["aupro"] is None
    assert partial["image_auroc"] == pytest.approx(result["image_auroc"])
    test[0] = test[0]._replace(label=-1)
    with pytest.raises(DataError, match=r"0\.png"):
        evaluate(detector, test)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_at_once_but_autocast_is_allowed(build, images, dtype) -> None:
    batch = torch.stack([sample.image for sample in images[:2]])
    detector = build().eval()
    right = detector.predict(batch).score
    for convert in (lambda: detector.to(dtype), lambda: detector.to("cpu", dtype), detector.half, detector.bfloat16):
        with pytest.raises(ConfigError, match=r"^dtype must be torch.float32 or torch.float64 for a detector, but got"):
            convert()
    assert torch.equal(detector.predict(batch).score, right)
    assert detector.double().predict(batch).score.dtype == torch.float32
    refused = f"^detector must be torch.float32 or torch.float64, but got {dtype}"
    for part in ("flows", "features", "head"):
        broken = build()
        getattr(broken, part).to(dtype)
        for read in (broken.predict, broken, broken.loss):
            with pytest.raises(ShapeError, match=refused):
                read(batch)
        for take in (calibrate, evaluate, refit, fit):
            with pytest.raises(ShapeError, match=refused):
                take(broken, images)
    detector = build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        cast = detector.predict(batch).score
    assert cast.dtype == torch.float32
    assert torch.allclose(cast, right, rtol=0.05, atol=0.05)
