"""Dotted settings, and the plain form in which configurations are stored."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.recipe_cases import ALL
from semflow.bases import StandardNormal
from semflow.errors import ConfigError
from semflow.recipes import (
    ABLATIONS,
    RECIPES,
    Backbone,
    ConvCouplings,
    Couplings,
    SemanticStatistics,
    StatisticsPrediction,
    build,
    plain_settings,
    resolve_settings,
    sanflow,
    setting_names,
)
from semflow.synthesis import CutPaste, Poisson
from semflow.training import TrainingConfig

VALUES = {
    "backbone.strides": st.sampled_from([(8,), (8, 16), [16, 32]]),
    "backbone": st.sampled_from(["resnet18", Backbone("resnet26", "random")]),
    "couplings.blocks": st.integers(1, 9),
    "couplings.standardize": st.booleans(),
    "statistics.mode": st.floats(0.01, 9),
    "synthesis": st.sampled_from([None, False, "none", True, CutPaste(jitter=0.2)]),
    "training.locations": st.sampled_from([None, "none", 256]),
    "training.clip": st.sampled_from([None, 1, 2.5]),
    "top": st.floats(0, 1),
    "seed": st.integers(0, 2**31),
}


def test_settings_change_single_fields() -> None:
    found = resolve_settings(sanflow, {"statistics.mode": 0.2, "synthesis": None, "backbone.strides": (8,)})
    default = resolve_settings(sanflow, {})
    assert found["statistics"] == SemanticStatistics(mode=0.2)
    assert found["synthesis"] is None
    assert found["backbone"] == Backbone(strides=(8,), smoothing=3)
    unchanged = default.keys() - {"statistics", "synthesis", "backbone"}
    assert all(found[name] == default[name] for name in unchanged)


def test_settings_of_an_optional_group_turn_it_on() -> None:
    cflow_ad = RECIPES["cflow_ad"]
    assert resolve_settings(cflow_ad, {})["statistics"] is None
    for on in ({"statistics": True}, {"statistics": {}}, {"statistics": StatisticsPrediction()}):
        assert resolve_settings(cflow_ad, on)["statistics"] == StatisticsPrediction()
    assert resolve_settings(cflow_ad, {"statistics.variance": "learned"})["statistics"].variance == "learned"
    for off in (None, False, "none"):
        assert resolve_settings(cflow_ad, {"statistics": off})["statistics"] is None


def test_fields_apply_after_whole_groups() -> None:
    settings = {"backbone.weights": "random", "backbone": "resnet18", "couplings.blocks": 3, "couplings": Couplings(5)}
    found = resolve_settings(sanflow, settings)
    assert (found["backbone"].name, found["backbone"].weights, found["backbone"].smoothing) == ("resnet18", "random", 3)
    assert found["couplings"] == Couplings(3)


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_plain_settings_resolve_to_the_same_arguments(settings) -> None:
    arguments = resolve_settings(sanflow, settings)
    stored = json.loads(json.dumps(plain_settings(arguments)))
    assert resolve_settings(sanflow, stored) == arguments
    assert plain_settings(resolve_settings(sanflow, stored)) == stored


@pytest.mark.parametrize("name", ALL)
def test_every_default_has_a_plain_form_without_null(name) -> None:
    arguments = resolve_settings(RECIPES[name], {})
    stored = json.dumps(plain_settings(arguments))
    assert "null" not in stored
    assert resolve_settings(RECIPES[name], json.loads(stored)) == arguments


@pytest.mark.parametrize("name", ALL)
def test_unknown_setting_lists_the_valid_ones(name) -> None:
    for unknown in ("blobs", "backbone.blobs", "seed.blobs", "backbone.name.blobs"):
        with pytest.raises(ConfigError) as caught:
            build(name, {unknown: 1})
        message = r"settings must have known names, but got '(.*)'; use some of (.*)"
        got, listed = re.fullmatch(message, str(caught.value)).groups()
        assert listed.split(", ") == setting_names(RECIPES[name])
        assert got == unknown


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_are_settings_of_sanflow(name) -> None:
    found, default = resolve_settings(sanflow, ABLATIONS[name]), resolve_settings(sanflow, {})
    changed = {argument for argument in default if found[argument] != default[argument]}
    assert changed == {setting.partition(".")[0] for setting in ABLATIONS[name]}
    assert (found["synthesis"] is None) == (name in {"1a", "2a"})


def test_recipe_accepts_groups_directly() -> None:
    detector = sanflow(
        Backbone("resnet18", "random", (8, 16)),
        64,
        couplings=Couplings(1, 16),
        statistics=SemanticStatistics("unit", bce=0.0),
        synthesis=None,
        training=TrainingConfig(epochs=3),
    )
    assert isinstance(detector.base, StandardNormal)
    assert detector.provenance.training == TrainingConfig(epochs=3)
    assert detector.provenance.arguments["statistics"]["bce"] == 0.0


def test_groups_check_their_fields() -> None:
    with pytest.raises(ConfigError, match="strides must be a tuple with a whole number in each place, but got 8"):
        Backbone(strides=8)
    with pytest.raises(ConfigError, match="blocks must be a whole number, but got 'three'"):
        Couplings(blocks="three")
    with pytest.raises(ConfigError, match="blocks must be at least 1, but got 0"):
        ConvCouplings(blocks=0)
    with pytest.raises(ConfigError, match="jitter must be between 0 and 1, but got 2"):
        CutPaste(jitter=2.0)
    assert Backbone(strides=[8, 16]) == Backbone(strides=(8, 16))
    assert hash(Backbone(strides=[8, 16])) == hash(Backbone(strides=(8, 16)))


def test_a_group_is_chosen_by_its_name_and_survives_a_file() -> None:
    small = {"backbone": "resnet18", "backbone.weights": "random", "couplings.blocks": 1}
    found = resolve_settings(sanflow, {"synthesis.patches": 4, "synthesis": "poisson", "synthesis.resize": [0.5, 2]})
    assert found["synthesis"] == Poisson(patches=4, resize=(0.5, 2))
    plain = plain_settings(found)
    assert plain["synthesis"]["type"] == "poisson"
    assert resolve_settings(sanflow, json.loads(json.dumps(plain))) == found
    built = build("sanflow", {**small, "synthesis": "poisson"})
    again = build("sanflow", built.provenance.arguments)
    assert built.provenance.synthesis == again.provenance.synthesis == Poisson()
    assert resolve_settings(sanflow, {"synthesis": True})["synthesis"] == CutPaste()
    assert "type" not in plain_settings({"synthesis": CutPaste()})["synthesis"]
    for settings in ({"synthesis.patches": 4}, {"synthesis": "poisson", "synthesis.jitter": 0.2}):
        with pytest.raises(ConfigError, match=r"synthesis must be a group with .* to set synthesis"):
            resolve_settings(sanflow, settings)
    with pytest.raises(ConfigError, match="synthesis must be CutPaste, Poisson or None, but got 'fish'"):
        resolve_settings(sanflow, {"synthesis": "fish"})
    with pytest.raises(ConfigError, match=r"synthesis\.patches must be at least 1, but got 0"):
        resolve_settings(sanflow, {"synthesis": "poisson", "synthesis.patches": 0})
