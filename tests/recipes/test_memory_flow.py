"""The library's own recipe: a memory of features or latents."""

import pytest
import torch

from helpers.recipe_cases import images, small, stack
from semflow.bases import Memory, SemanticGaussian
from semflow.errors import ConfigError
from semflow.flows import OptionalFlow
from semflow.nn import FixedVariance
from semflow.recipes import StoredMemory, build, load, remember
from semflow.synthesis import CutPaste
from semflow.training import fit
from semflow.training.choice import FlowChoice

BATCH = stack(images(3, seed=1))


def made(**settings):
    return small("memory_flow", settings)


def test_parts() -> None:
    detector = build("memory_flow", {"backbone": "resnet18", "backbone.weights": "random", "couplings.blocks": 1})
    assert detector.features.channels == (64, 128, 128 + 256)
    assert detector.features.strides == (8, 8, 8)
    assert all(isinstance(flow, OptionalFlow) for flow in detector.flows)
    assert all(type(base) is Memory and base.size == 6000 and base.form == "nearest" for base in detector.bases)
    assert all(isinstance(detector.training_base(k), SemanticGaussian) for k in range(3))
    assert isinstance(detector.head, FixedVariance)
    assert not detector.score_log_det
    assert detector.scorer.standardize
    assert (detector.provenance.training.steps, detector.provenance.synthesis) == (160, CutPaste())


def choose(used, monkeypatch) -> None:
    """Let the choice be known."""
    monkeypatch.setattr(FlowChoice, "promises", lambda *_: True)
    monkeypatch.setattr(FlowChoice, "make", lambda choice: [flow.use(used, 0.1) for flow in choice.flows])


@pytest.mark.parametrize("used", [True, False])
def test_recipe_fits_scores_and_loads(used, monkeypatch, tmp_path) -> None:
    choose(used, monkeypatch)
    detector = fit(made(), images(12), output=tmp_path / "run", calibration=images(9, seed=5), progress=False)
    prediction = detector.predict(BATCH)
    assert prediction.anomaly_map.shape == (3, 64, 64)
    assert prediction.anomaly_map.isfinite().all()
    low, high = detector.map_range
    assert low < high
    loaded = load(tmp_path / "run")
    assert [flow.used for flow in loaded.flows] == [used] * 3
    again = loaded.predict(BATCH)
    assert torch.equal(again.anomaly_map, prediction.anomaly_map)
    assert torch.equal(again.p_value, prediction.p_value)
    assert loaded.provenance == detector.provenance
    for k in range(3):
        alone = detector.predict(BATCH[k : k + 1])
        torch.testing.assert_close(alone.score[0], prediction.score[k], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.anomaly_map[0], prediction.anomaly_map[k], rtol=1e-4, atol=1e-4)


def test_flow_that_is_left_out_leaves_a_memory_of_features(monkeypatch) -> None:
    """The map is the sum over scales of standardized distances between features, as logarithms."""
    choose(False, monkeypatch)
    detector = fit(made(memory=10**6, blur=0.0), images(12), progress=False)
    with torch.no_grad():
        maps = [x.double() for x in detector.features(BATCH)]
        normal = [x.double() for x in detector.features(stack(images(12)))]
        found, _ = detector.log_probs(BATCH)
    for k, (x, stored) in enumerate(zip(maps, normal, strict=True)):
        rows, queries = stored.movedim(1, -1).flatten(0, 2), x.movedim(1, -1).flatten(0, 2)
        distance = torch.cdist(queries, rows, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        distance = distance.clamp(min=detector.bases[k].floor.double())
        difference = found[k].double().flatten() + distance.log()  # a constant of the volume and the number
        torch.testing.assert_close(difference, difference.mean().expand_as(difference), rtol=0, atol=1e-4)


def test_training_without_synthesis_is_possible() -> None:
    detector = fit(made(synthesis="none"), images(12), progress=False)
    assert detector.flows[0].used == (detector.flows[0].spread <= 0.3)
    assert detector.predict(BATCH).score.isfinite().all()


def test_memory_may_be_replaced(tmp_path) -> None:
    detector = fit(made(), images(12), output=tmp_path / "run", progress=False)
    used = detector.flows[0].used
    remember(detector, images(12), StoredMemory("distance", size=50, log_det=False))
    assert len(detector.bases[0].vectors) == 50
    assert detector.flows[0].used == used
    assert detector.predict(BATCH).anomaly_map.isfinite().all()


def test_backbone_must_have_three_maps() -> None:
    with pytest.raises(
        ConfigError, match=r"backbone must have 3 maps, of strides 4, 8 and 16, but got strides \(8, 16\)"
    ):
        made(**{"backbone.strides": (8, 16)})
