"""Every recipe, with and without statistics prediction: it trains, scores, is read back, and says what it changes."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from helpers.recipe_cases import COMMON, SMALL, WITH_AND_WITHOUT, as_json, images, small, stack
from semflow.bases import SemanticGaussian, StandardNormal
from semflow.errors import ConfigError
from semflow.flows import AffineCoupling, HardPermutation, SoftPermutation, Standardize
from semflow.functional import to_locations
from semflow.recipes import RECIPES, build, load, sanflow
from semflow.recipes.recipe import recipe
from semflow.training import evaluate, fit


@pytest.mark.parametrize(("name", "statistics"), [*WITH_AND_WITHOUT, ("sanflow", None)])
def test_a_recipe_trains_scores_and_is_read_back(name, statistics, tmp_path) -> None:
    detector = small(name) if statistics is None else small(name, statistics=statistics)
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
    assert load(tmp_path / "run").config == {**detector.config, "arguments": as_json(detector.config["arguments"])}
    for i in range(3):
        alone = detector.predict(batch[i : i + 1])
        torch.testing.assert_close(alone.score[0], prediction.score[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.anomaly_map[0], prediction.anomaly_map[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variance", ["learned", "fixed", "unit"])
@pytest.mark.parametrize("name", ["cflow_ad", "fastflow", "msflow"])
def test_the_controls_of_statistics_prediction(name, variance) -> None:
    detector = fit(small(name, statistics=True, variance=variance), images(4), epochs=1, progress=False)
    with torch.no_grad():
        latents = detector.encode(stack(images(2)))
    for scale in latents:
        if variance == "unit":
            assert scale.statistics is None
        else:
            assert scale.statistics.variance().unique().numel() == 1
            assert scale.statistics.kl is None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_where_its_values_are_from_and_what_it_changes(name) -> None:
    file = Path(inspect.getsourcefile(inspect.unwrap(RECIPES[name])))
    assert len(file.read_text(encoding="utf-8").splitlines()) < 100
    text = RECIPES[name].__doc__
    assert "From the paper" in text
    assert "Changed:" in text
    arguments = text[text.index("Args:") : text.index("Raises:")]
    for parameter in inspect.signature(RECIPES[name]).parameters:
        assert re.search(rf"\b{parameter}\b.*:", arguments), parameter


def test_nobody_imports_a_recipe_but_the_registry() -> None:
    recipes = Path(inspect.getsourcefile(build)).parent
    for file in recipes.glob("*.py"):
        if file.name in ("__init__.py", "registry.py"):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
        assert imported <= {"recipe", "ablations"}, file.name


def test_cflow_is_as_published() -> None:
    detector = small("cflow_ad", blocks=8, position_channels=128, locations=256)
    assert detector.features.strides == (8, 16, 32)
    assert detector.position.channels == 128
    assert [type(f) for f in detector.flows[0]].count(AffineCoupling) == 8
    assert any(isinstance(f, SoftPermutation) for f in detector.flows[0])
    assert not any(isinstance(f, Standardize) for f in detector.flows[0])
    assert (detector.plan.locations, detector.plan.batch_size, detector.plan.epochs) == (256, 32, 200)
    hard = small("cflow_ad", permutation="hard", locations=0)
    assert any(isinstance(f, HardPermutation) for f in hard.flows[0])
    assert hard.plan.locations is None


def test_fastflow_has_three_scales_of_a_cnn_and_one_of_a_transformer() -> None:
    detector = small("fastflow", steps=0)
    couplings = [f for f in detector.flows[1] if isinstance(f, AffineCoupling)]
    assert [f.subnet.first.kernel_size[0] for f in couplings] == [3, 1] * 4
    assert detector.flows.events == ("sample",) * 3
    only = small("fastflow", conv3x3_only=True)
    assert {f.subnet.first.kernel_size[0] for f in only.flows[0] if isinstance(f, AffineCoupling)} == {3}
    transformer = build("fastflow", backbone="test_vit", weights="random", image_size=64)
    couplings = [f for f in transformer.flows[0] if isinstance(f, AffineCoupling)]
    assert (len(transformer.flows), len(couplings)) == (1, 20)
    assert couplings[0].subnet.first.out_channels == int(0.16 * 32)
    assert transformer.predict(torch.rand(1, 3, 64, 64)).anomaly_map.shape == (1, 64, 64)


def test_fastflow_normalises_without_an_affine_or_counts_the_log_det() -> None:
    x = stack(images(2))
    for m in small("fastflow").features(x):
        torch.testing.assert_close(m.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(m.var((1, 2, 3), correction=0), torch.ones(2), atol=1e-2, rtol=0)
    counted = small("fastflow", standardize=True)
    assert all(isinstance(flow[0], Standardize) for flow in counted.flows)


def test_differnet_scores_images_by_the_mean_of_their_views_and_has_no_pixel_metrics() -> None:
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
def test_a_joint_recipe_trains_the_likelihood_of_all_scales_together(name) -> None:
    """The loss is -log p of the whole pyramid by its number of dimensions, whatever the scales' sizes."""
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


def test_sanflow_variants_by_name() -> None:
    detector = sanflow(**COMMON, **SMALL["sanflow"], ablation="3a", margin=0.5)
    assert detector.config["arguments"]["variance"] == "fixed"
    assert detector.config["arguments"]["ablation"] is None
    assert detector.base.anomaly_mean == 0.5
    with pytest.raises(ConfigError, match="ablation must be one of 1a, 1b"):
        sanflow(**COMMON, ablation="4a")
    assert sanflow("wide_resnet101_2", "random", blocks=1, ablation="1a").features.channels == (512, 1024, 2048)


def test_h_on_features() -> None:
    detector = small("sanflow", statistics_source="features")
    fit(detector, images(4), epochs=1, progress=False)
    assert len(detector.head.networks) == 3
    z, _, _, statistics = detector.encode(stack(images(1)))[0]
    assert len(to_locations(z)) == statistics.beta.numel()


def test_what_recipes_refuse() -> None:
    with pytest.raises(ConfigError, match="blocks must be 3 numbers"):
        small("msflow", blocks=(1, 2))
    with pytest.raises(ConfigError, match="source must be image or features"):
        small("sanflow", statistics_source="sky")
    for name in ("cs_flow", "differnet"):
        for wrong in ({"blocks": 0}, {"hidden": 0}):
            with pytest.raises(ConfigError, match="must be"):
                small(name, **wrong)
    with pytest.raises(ConfigError, match="hidden_ratio"):
        small("fastflow", hidden_ratio=-1.0)
    with pytest.raises(ConfigError, match="ablation must be"):
        small("sanflow", ablation=[1])
    for name in ("cflow_ad", "fastflow", "msflow", "cs_flow", "differnet"):
        with pytest.raises(ConfigError, match="variance learned belongs to statistics=True"):
            small(name, variance="learned")
    for wrong in ({"blocks": 0}, {"guard": -3}, {"mode": -3.0}, {"mask_mode": "soft"}, {"statistics_stride": 0}):
        with pytest.raises(ConfigError, match=r"blocks|guard|mode|mask_mode|stride"):
            small("sanflow", **wrong)
    with pytest.raises(ConfigError, match="predicted_mean needs variance"):
        small("sanflow", variance="learned", predicted_mean=True)


def test_h_is_as_fine_as_the_finest_map() -> None:
    detector = small("fastflow", statistics=True)
    assert detector.head.networks[0].stride == 4
    image = stack(images(1))
    fine = detector.encode(image)[0].statistics.variance()
    assert not torch.equal(fine[:, ::2, ::2], fine[:, 1::2, 1::2])


def test_views_do_not_hear_each_other() -> None:
    detector = small("differnet", statistics=True)
    (m,) = detector.features(stack(images(1)))
    changed = m.clone()
    changed[:, :, 2] += 1.0
    before, after = (detector.head(None, [x])[0].beta[0, 0, :, 0] for x in (m, changed))
    assert (before != after).tolist() == [False, False, True, False]


def test_building_leaves_every_generator_alone(monkeypatch) -> None:
    called = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", called.append)
    small("cflow_ad", seed=7)
    assert not called


def test_a_recipe_of_ones_own_remembers_its_arguments() -> None:
    @recipe
    def mine(width: int = 3, seed: int = 0):
        return small("fastflow", seed=seed)

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert mine(4).config["recipe"] == "fastflow"  # a variant of another is remembered as that other
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("recipe", ["cflow_ad", "fastflow"])
def test_the_form_of_the_likelihood_is_the_bases(recipe: str) -> None:
    small = {"backbone": "resnet18", "weights": "random"}
    assert build(recipe, statistics=True, form="marginal", **small).base.form == "marginal"
    with pytest.raises(ConfigError, match="form marginal belongs to statistics=True"):
        build(recipe, form="marginal", **small)
