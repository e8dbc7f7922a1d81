"""Flows that are kept or left out by held-out normal images with synthetic defects."""

import json
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from helpers.after_epoch import AfterEpoch
from helpers.aupro_truth import reference_aupro
from helpers.fitted_base import make_fitted
from helpers.small_detector import make_detector, make_images
from semflow.bases import Memory
from semflow.flows import GlobalAffine, OptionalFlow, ScaleWise
from semflow.synthesis import Blemishes, CutPaste
from semflow.training import choose_flow, fit, held_for_choice, optional_flows
from semflow.training import fitting as training
from semflow.training.checkpoint import load_into
from semflow.training.choice import FlowChoice, Trial

IMAGES = make_images(10)
HELD = held_for_choice(10)


def optional(seed: int = 0, synthesis=None):
    return make_fitted(seed, trained=True, synthesis=synthesis, optional=True)


def prepared():
    """A detector whose flows are far from the identity."""
    detector = optional()
    with torch.no_grad():
        for number, parameter in enumerate(detector.trainable()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.3 * noise)
    detector.prepare([torch.stack([sample.image for sample in IMAGES])])
    return detector.eval()


@given(st.integers(1, 2000))
def test_held_images_are_a_fifth_and_spread_out(images) -> None:
    held = held_for_choice(images)
    assert len(held) == (min(images // 5, 24) if images >= 10 else 0)
    assert held == sorted(set(held))
    assert all(0 <= i < images for i in held)
    if len(held) > 1:
        steps = [b - a for a, b in pairwise(held)]
        assert max(steps) - min(steps) <= 1


def test_gain_is_the_rise_of_image_auroc_and_aupro() -> None:
    """The scores and maps are those of a detector fitted to the rest; the metrics are those of other code."""
    detector = prepared()
    gain = choose_flow(detector, IMAGES, HELD, batch_size=3, seed=5)
    blemishes, rng = Blemishes(), np.random.default_rng((5, len(HELD), 2))
    normal = [IMAGES[i].image for i in HELD]
    defects, masks = [], [torch.zeros(32, 32, dtype=torch.bool)] * len(normal)
    for k in range(3 * len(normal)):
        donor = normal[int(rng.integers(len(normal)))]
        image, mask = blemishes(normal[k % len(normal)], donor, blemishes.kinds[k % 5], rng)
        defects.append(image)
        masks.append(mask)
    judged, rest = torch.stack([*normal, *defects]), torch.stack([IMAGES[i].image for i in range(10) if i not in HELD])
    quality = {}
    for used in (False, True):
        other = prepared()
        for flow in optional_flows(other):
            flow.use(used)
        other.fit_base([rest])
        other.fit_score([rest])
        found = other.predict(judged)
        labels = [0] * len(normal) + [1] * len(defects)
        image = roc_auc_score(labels, found.score.double().numpy())
        maps = reference_aupro(found.anomaly_map.double().numpy(), [m.numpy() for m in masks], 0.3)
        quality[used] = statistics.mean([image, maps])
    assert gain == pytest.approx(quality[True] - quality[False], abs=1e-4)
    assert abs(gain) > 1e-3
    for flow in optional_flows(detector):
        assert flow.used == (gain > 0.035)
        assert flow.gain == pytest.approx(gain, rel=1e-6)


def test_gain_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    gains = [choose_flow(prepared(), IMAGES, HELD, batch_size=size) for size in (1, 8)]
    assert torch.equal(torch.get_rng_state(), state)
    assert gains[0] == pytest.approx(gains[1], abs=1e-4)
    assert choose_flow(prepared(), IMAGES, HELD, seed=1) != gains[1]


@pytest.mark.parametrize(("gain", "used"), [(0.0351, True), (0.0349, False), (-0.3, False)])
def test_flow_is_used_above_the_margin(gain, used, monkeypatch) -> None:
    for metric in ("auroc", "aupro"):
        values = iter([0.5, 0.5 + gain])  # without and with the flow
        monkeypatch.setattr(f"semflow.training.choice.{metric}", lambda *_, values=values, **__: next(values))
    detector = prepared()
    assert choose_flow(detector, IMAGES, HELD) == pytest.approx(gain)
    assert detector.flows[0].used == used


def decided(monkeypatch, used: bool) -> None:
    """Let the choice be known."""

    def choose(_, detector) -> float:
        gain = 0.25 if used else -0.25
        for flow in optional_flows(detector):
            flow.use(used, gain)
        return gain

    monkeypatch.setattr(Trial, "choose", choose)


@pytest.mark.parametrize("used", [True, False])
def test_fitted_detector_is_that_of_the_choice(used, monkeypatch, tmp_path) -> None:
    decided(monkeypatch, used)
    detector = fit(optional(), IMAGES, output=tmp_path / "run", progress=False)
    assert [flow.used for flow in detector.flows] == [used, used]
    batch = torch.stack([sample.image for sample in make_images(3, seed=4)])
    prediction = detector.predict(batch)
    with torch.no_grad():
        maps = detector.features(batch)
        latents = [scale.z for scale in detector.encode(batch)]
    assert all(torch.equal(z, x) == (not used) for z, x in zip(latents, maps, strict=True))
    assert len(detector.bases[0].rows) == 10  # all images, those held out too
    for other in (
        load_into(optional(seed=3), tmp_path / "run").eval(),
        fit(optional(), IMAGES, output=tmp_path / "run", resume=True, progress=False),
    ):
        assert [flow.used for flow in other.flows] == [used, used]
        assert torch.equal(other.predict(batch).anomaly_map, prediction.anomaly_map)


def test_flow_is_not_trained_on_the_images_that_judge_it(monkeypatch) -> None:
    """Other images in their place change nothing but the standardization, which is removed here."""
    decided(monkeypatch, True)

    def trained(images, synthesis):
        detector = optional(synthesis=synthesis)
        monkeypatch.setattr(type(detector), "prepare", lambda *_: None)
        fit(detector, images, progress=False)
        return [p.detach().clone() for p in detector.trainable()]

    other = list(IMAGES)
    for i, sample in zip(HELD, make_images(2, seed=7), strict=True):
        other[i] = sample
    for synthesis in (None, CutPaste()):
        assert all(
            torch.equal(a, b) for a, b in zip(trained(IMAGES, synthesis), trained(other, synthesis), strict=True)
        )
    other[0] = make_images(1, seed=8)[0]
    changed = zip(trained(IMAGES, None), trained(other, None), strict=True)
    assert any(not torch.equal(a, b) for a, b in changed)


@pytest.mark.parametrize("epochs", [None, 0])
def test_flow_is_left_out_if_nothing_can_be_measured(epochs, monkeypatch) -> None:
    monkeypatch.setattr(Trial, "choose", None)  # not called
    detector = fit(optional(), IMAGES[:9], epochs=epochs, progress=False)
    assert [(flow.used, flow.gain) for flow in detector.flows] == [(False, 0.0)] * 2


def test_choice_is_made_without_gradient_steps() -> None:
    detector = fit(optional(), IMAGES, epochs=0, progress=False)
    assert detector.flows[0].gain == detector.flows[1].gain
    assert all(flow.used == (flow.gain > 0.035) for flow in detector.flows)


def test_flow_that_was_left_out_is_trained_again(monkeypatch) -> None:
    decided(monkeypatch, False)
    detector = fit(optional(), IMAGES, progress=False)
    before = [p.clone() for p in detector.trainable()]
    fit(detector, IMAGES, progress=False)
    assert any(not torch.equal(p, b) for p, b in zip(detector.trainable(), before, strict=True))
    assert not detector.flows[0].used


def test_calibration_images_do_not_judge() -> None:
    """30 images: 10 for calibration, a fifth of the others judges."""
    seen = []

    class Images(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    detector = fit(optional(), Images(make_images(30)), calibration=10, epochs=0, progress=False)
    assert detector.calibration.count == 10
    assert len(detector.bases[0].rows) == 20
    assert set(seen) == set(range(30))


@pytest.mark.parametrize("place", [(FlowChoice, "promises"), (FlowChoice, "make"), (training, "settle")])
def test_run_killed_around_the_choice_ends_the_same(place, tmp_path, monkeypatch) -> None:
    whole = fit(optional(), IMAGES, output=tmp_path / "whole", progress=False)
    kept = FlowChoice.promises

    def kill(*arguments, **_):
        if place[1] == "promises" and arguments[1] < 1:
            return kept(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*place, kill)
        with pytest.raises(KeyboardInterrupt):
            fit(optional(), IMAGES, output=tmp_path / "run", checkpoint_seconds=0, progress=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["held_for_choice"] == 2
    resumed = fit(optional(), IMAGES, output=tmp_path / "run", resume=True, progress=False)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert [flow.used for flow in resumed.flows] == [flow.used for flow in whole.flows]


@pytest.mark.parametrize(("first", "epochs"), [(0.0174, 2), (0.0176, 8), (-1.0, 2)])
def test_flow_that_gains_little_after_a_quarter_is_left_out_at_once(first, epochs, monkeypatch, tmp_path) -> None:
    """At most half the margin ends the training. The detector is then that of a training without the flow."""
    gains = iter([first, 0.25])

    def choose(_, detector) -> float:
        gain = next(gains)
        assert not detector.training
        detector.fit_base([torch.stack([sample.image for sample in IMAGES[:4]])])  # must not reach the training
        for flow in optional_flows(detector):
            flow.use(gain > 0.035, gain)
        return gain

    monkeypatch.setattr(Trial, "choose", choose)
    detector = fit(optional(), IMAGES, epochs=8, output=tmp_path / "run", progress=False)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(1, epochs + 1))
    assert [flow.used for flow in detector.flows] == [epochs == 8] * 2
    assert detector.flows[0].gain == pytest.approx(first if epochs == 2 else 0.25)
    assert len(detector.bases[0].rows) == 10
    monkeypatch.setattr(FlowChoice, "promises", lambda *_: True)
    decided(monkeypatch, epochs == 8)
    seen = {}

    def keep(other, epoch) -> None:
        seen[epoch] = [p.detach().clone() for p in other.trainable()]

    fit(optional(), IMAGES, epochs=8, progress=False, callbacks=[AfterEpoch(keep)])
    assert all(torch.equal(a, b) for a, b in zip(detector.trainable(), seen[epochs], strict=True))


def test_quality_without_the_flow_is_measured_once(monkeypatch) -> None:
    values = iter([0.5, 0.5, 0.6, 0.6, 0.7, 0.7])  # image AUROC and AUPRO: without, then with after a quarter and all
    for metric in ("auroc", "aupro"):
        monkeypatch.setattr(f"semflow.training.choice.{metric}", lambda *_, **__: next(values))
    detector = fit(optional(), IMAGES, epochs=8, progress=False)
    assert detector.flows[0].gain == pytest.approx(0.2)
    assert next(values, None) is None


@pytest.mark.parametrize(("epochs", "trials"), [(4, 1), (8, 2)])
def test_short_training_is_tried_at_its_end_alone(epochs, trials, monkeypatch) -> None:
    """A trial of 8 images to fit to and 8 to score, early, is worth 32 images that are not trained on."""
    choose, called = Trial.choose, []
    monkeypatch.setattr(Trial, "choose", lambda *given: called.append(1) or max(0.1, choose(*given)))
    fit(optional(), IMAGES, epochs=epochs, progress=False)
    assert len(called) == trials


def test_backbone_sees_only_the_defects_and_only_once(monkeypatch) -> None:
    """The maps of the normal images are those of training."""
    choose = Trial.choose
    seen: list[int] = []

    def counted(trial, detector) -> float:
        features = detector.features.forward
        with monkeypatch.context() as patched:
            patched.setattr(detector.features, "forward", lambda x: seen.append(len(x)) or features(x))
            return max(0.1, choose(trial, detector))

    monkeypatch.setattr(Trial, "choose", counted)
    kept = fit(optional(), IMAGES, epochs=8, progress=False)
    assert sum(seen) == 3 * len(HELD)
    monkeypatch.setattr("semflow.training.choice.KEPT_BYTES", 0)
    monkeypatch.setattr("semflow.training.choice.MAPS_BYTES", 0)
    others = fit(optional(), IMAGES, epochs=8, cache_bytes=0, progress=False)
    assert others.flows[0].gain == pytest.approx(kept.flows[0].gain, abs=1e-4)


def test_base_that_is_not_fitted_may_have_an_optional_flow() -> None:
    detector = make_detector(synthesis=False)
    detector.flows = ScaleWise([OptionalFlow(GlobalAffine(c)) for c in (6, 8)])
    fit(detector, IMAGES, epochs=1, progress=False)
    assert detector.flows[0].used == (detector.flows[0].gain > 0.035)


def test_choice_fits_smaller_memories_and_restores_their_size(monkeypatch) -> None:
    monkeypatch.setattr("semflow.training.choice.STORED", 12)
    detector = prepared()
    detector.set_base([Memory(size=size) for size in (40, 5, 0.5)[: len(detector.bases)]])
    sizes = [base.size for base in detector.bases]
    choose_flow(detector, IMAGES, HELD)
    assert [base.size for base in detector.bases] == sizes
    locations = [base.vectors.shape[0] for base in detector.bases]
    assert locations == [12, 5, locations[-1]][: len(locations)]
