"""Every recipe, with and without statistics prediction."""

import ast
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.recipe_cases import PUBLISHED, WITH_AND_WITHOUT, images, small, stack
from semflow.bases import SemanticGaussian, StandardNormal
from semflow.errors import ConfigError
from semflow.flows import AffineCoupling, HardPermutation, SoftPermutation, Standardize
from semflow.functional import to_locations
from semflow.recipes import RECIPES, SemanticStatistics, build, load, resolve_settings
from semflow.training import evaluate, fit


@pytest.mark.parametrize(("name", "settings"), WITH_AND_WITHOUT)
def test_recipe_trains_scores_and_loads(name, settings, tmp_path) -> None:
    detector = small(name, settings)
    statistics = settings.get("statistics")
    rate = {"differnet": 1e-4, "fastflow": 5e-4, "cs_flow": 3e-4}.get(name, 2e-3)
    fit(detector, images(6), epochs=6, batch_size=6, learning_rate=rate, output=tmp_path / "run", progress=False)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert isinstance(detector.base, StandardNormal if statistics is False else SemanticGaussian)
    batch = stack(images(3, seed=1))
    prediction = detector.predict(batch)
    assert prediction.anomaly_map.shape == (3, 64, 64)
    assert torch.isfinite(prediction.anomaly_map).all()
    assert len(prediction.variance) == (0 if statistics is False else len(detector.features.channels))
    again = load(tmp_path / "run").predict(batch)
    assert torch.equal(again.score, prediction.score)
    assert load(tmp_path / "run").provenance == detector.provenance
    for i in range(3):
        alone = detector.predict(batch[i : i + 1])
        torch.testing.assert_close(alone.score[0], prediction.score[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.anomaly_map[0], prediction.anomaly_map[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variance", ["learned", "fixed", "unit"])
@pytest.mark.parametrize("name", ["cflow_ad", "fastflow", "msflow"])
def test_variance_controls_have_one_variance(name, variance) -> None:
    detector = fit(small(name, {"statistics.variance": variance}), images(4), epochs=1, progress=False)
    with torch.no_grad():
        latents = detector.encode(stack(images(2)))
    for scale in latents:
        if variance == "unit":
            assert scale.statistics is None
        else:
            assert scale.statistics.variance().unique().numel() == 1
            assert scale.statistics.kl is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_short_and_documents_its_source_and_changes(name) -> None:
    file = Path(inspect.getsourcefile(inspect.unwrap(RECIPES[name])))
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 100
    assert len(inspect.signature(RECIPES[name]).parameters) <= 9
    text = RECIPES[name].__doc__
    assert "From the paper" in text
    assert "Changed:" in text
    arguments = text[text.index("Args:") : text.index("Example:")]
    for parameter in inspect.signature(RECIPES[name]).parameters:
        assert re.search(rf"\b{parameter}\b.*:", arguments), parameter


def test_recipes_do_not_import_each_other() -> None:
    recipes = Path(inspect.getsourcefile(build)).parent
    for name in PUBLISHED:
        tree = ast.parse((recipes / f"{name}.py").read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
        assert imported == {"groups", "registry"}, name


def test_cflow_is_as_published() -> None:
    published = {"couplings": True, "couplings.blocks": 8, "couplings.position_channels": 128}
    assert any(isinstance(f, Standardize) for f in small("cflow_ad", published).flows[0])  # by default, not published
    detector = small("cflow_ad", {**published, "couplings.standardize": False, "training.locations": 256})
    assert detector.features.strides == (8, 16, 32)
    assert detector.position.channels == 128
    assert [type(f) for f in detector.flows[0]].count(AffineCoupling) == 8
    assert any(isinstance(f, SoftPermutation) for f in detector.flows[0])
    assert not any(isinstance(f, Standardize) for f in detector.flows[0])
    training = detector.provenance.training
    assert (training.locations, training.batch_size, training.epochs) == (256, 32, 200)
    hard = small("cflow_ad", {"couplings.permutation": "hard", "training.locations": None})
    assert any(isinstance(f, HardPermutation) for f in hard.flows[0])
    assert hard.provenance.training.locations is None


def test_fastflow_uses_three_scales_of_a_cnn_and_one_of_a_transformer() -> None:
    detector = small("fastflow", {"couplings.blocks": None})
    couplings = [f for f in detector.flows[1] if isinstance(f, AffineCoupling)]
    assert [f.subnet.first.kernel_size[0] for f in couplings] == [3, 1] * 4
    assert detector.flows.events == ("sample",) * 3
    only = small("fastflow", {"couplings.conv3x3_only": True})
    assert {f.subnet.first.kernel_size[0] for f in only.flows[0] if isinstance(f, AffineCoupling)} == {3}
    transformer = build("fastflow", {"backbone": "test_vit", "backbone.weights": "random", "image_size": 64})
    couplings = [f for f in transformer.flows[0] if isinstance(f, AffineCoupling)]
    assert (len(transformer.flows), len(couplings)) == (1, 20)
    assert couplings[0].subnet.first.out_channels == int(0.16 * 32)
    assert transformer.predict(torch.rand(1, 3, 64, 64)).anomaly_map.shape == (1, 64, 64)


def test_fastflow_normalizes_maps_or_standardizes_channels() -> None:
    x = stack(images(2))
    for m in small("fastflow").features(x):
        torch.testing.assert_close(m.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(m.var((1, 2, 3), correction=0), torch.ones(2), atol=1e-2, rtol=0)
    counted = small("fastflow", {"couplings.standardize": True})
    assert all(isinstance(flow[0], Standardize) for flow in counted.flows)


def test_differnet_averages_views_and_has_no_pixel_metrics() -> None:
    detector = small("differnet")
    detector.fit_score([stack(images(4))])
    batch = stack(images(2, seed=1))
    prediction = detector.predict(batch)
    assert (prediction.anomaly_map == prediction.score[:, None, None]).all()
    with torch.no_grad():
        log_probs, _ = detector.log_probs(batch)
    assert log_probs[0].shape == (2, 4, 1)
    torch.testing.assert_close(prediction.score, detector.scorer.offsets[0] - log_probs[0].mean((1, 2)))
    # The views are quarter turns here, so a turned image is the same image.
    torch.testing.assert_close(detector.predict(batch.rot90(1, (2, 3))).score, prediction.score, rtol=1e-4, atol=1e-5)
    test = images(4)
    mask = torch.ones(64, 64, dtype=torch.bool)
    test[0] = test[0]._replace(label=1, anomaly_mask=mask)
    result = evaluate(detector, test)
    assert result["pixel_auroc"] is None
    assert result["image_auroc"] is not None


@pytest.mark.parametrize("name", ["cs_flow", "msflow"])
def test_joint_recipes_train_the_likelihood_of_all_scales(name) -> None:
    """The loss is -log p of all scales divided by their number of dimensions."""
    detector = small(name).double().eval()
    batch = stack(images(2)).double()
    with torch.no_grad():
        for parameter in detector.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))
        latents = detector.encode(batch)
        log_p = sum(torch.distributions.Normal(0.0, 1.0).log_prob(s.z).sum((1, 2, 3)) + s.log_det for s in latents)
        dimensions = sum(s.z[0].numel() for s in latents)
        loss = detector.loss(batch)
    torch.testing.assert_close(loss.total, -(log_p / dimensions).mean(), rtol=1e-10, atol=1e-10)


def test_statistics_network_on_features() -> None:
    detector = small("sanflow", {"statistics.source": "features"})
    fit(detector, images(4), epochs=1, progress=False)
    assert len(detector.head.networks) == 3
    z, _, _, statistics = detector.encode(stack(images(1)))[0]
    assert len(to_locations(z)) == statistics.beta.numel()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("msflow", {"couplings.blocks": (1, 2)}, r"couplings\.blocks must be 3 numbers"),
        ("sanflow", {"statistics.source": "sky"}, r"statistics\.source must be image or features, but got 'sky'"),
        ("sanflow", {"statistics.variance": "learned", "statistics.predicted_mean": True}, "predicted_mean"),
        ("sanflow", {"statistics.mode": -3.0}, "mode must be"),
        ("sanflow", {"statistics.stride": 0}, "stride must be"),
        ("sanflow", {"statistics.margin": 0.0}, "margin must"),
        ("sanflow", {"statistics.bce": -1.0}, "bce must be"),
        ("sanflow", {"statistics": None}, "statistics must be SemanticStatistics, but got None"),
        ("sanflow", {"couplings.blocks": 0}, "blocks must be at least 1, but got 0"),
        ("sanflow", {"training.guard": -3}, r"training\.guard must be at least 0, but got -3"),
        ("sanflow", {"training.mask_resize": "soft"}, r"training\.mask_resize must be nearest or max"),
        ("sanflow", {"synthesis.kinds": ("perlin",)}, r"synthesis\.kinds must be"),
        ("sanflow", {"synthesis": False, "synthesis.jitter": 0.2}, "synthesis must be a group .* but got None"),
        ("cs_flow", {"couplings.blocks": 0}, r"couplings\.blocks must be at least 1, but got 0"),
        ("differnet", {"couplings.hidden": 0}, r"couplings\.hidden must be at least 1, but got 0"),
        ("fastflow", {"couplings.hidden_ratio": -1.0}, r"couplings\.hidden_ratio must be positive"),
        (
            "fastflow",
            {"statistics.margin": 2.0},
            r"but got 'statistics\.margin'; use .*statistics\.mode",
        ),
        ("fastflow", {"statistics": SemanticStatistics()}, "statistics must be StatisticsPrediction or None"),
        ("fastflow", {"top": 2.0}, "top must be a fraction"),
        ("fastflow", {"backbone": 3}, "backbone must be"),
    ],
)
def test_recipes_reject_invalid_settings(name, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        small(name, settings)


def test_statistics_are_predicted_at_the_finest_stride() -> None:
    detector = small("fastflow", {"statistics": True})
    assert detector.head.networks[0].stride == 4
    image = stack(images(1))
    fine = detector.encode(image)[0].statistics.variance()
    assert not torch.equal(fine[:, ::2, ::2], fine[:, 1::2, 1::2])


def test_views_are_predicted_independently() -> None:
    detector = small("differnet", {"statistics": True})
    (m,) = detector.features(stack(images(1)))
    changed = m.clone()
    changed[:, :, 2] += 1.0
    before, after = (detector.head(None, [x])[0].beta[0, 0, :, 0] for x in (m, changed))
    assert (before != after).tolist() == [False, False, True, False]


def test_building_leaves_gpu_generators_alone(monkeypatch) -> None:
    called = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", called.append)
    small("cflow_ad", {"seed": 7})
    assert not called


@pytest.mark.parametrize("name", ["cflow_ad", "fastflow"])
def test_statistics_set_the_form_of_the_likelihood(name) -> None:
    assert small(name, {"statistics.form": "marginal"}).base.form == "marginal"


@pytest.mark.parametrize("name", PUBLISHED)
def test_backbone_name_keeps_the_rest_of_the_default(name) -> None:
    default = inspect.signature(RECIPES[name]).parameters["backbone"].default
    assert resolve_settings(RECIPES[name], {"backbone": "resnet18"})["backbone"] == replace(default, name="resnet18")
