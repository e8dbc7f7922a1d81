"""Flows that are kept or left out by the spread of their log-det over normal images."""

import json
import math

import numpy as np
import pytest
import torch

from helpers.after_epoch import AfterEpoch
from helpers.fitted_base import make_fitted
from helpers.small_detector import make_detector, make_images
from semflow.detectors import NormalBatch
from semflow.errors import SemflowError, ShapeError
from semflow.flows import GlobalAffine, OptionalFlow, ScaleWise
from semflow.synthesis import CutPaste
from semflow.training import choice as module
from semflow.training import choose_flow, fit, optional_flows
from semflow.training import fitting as training
from semflow.training.checkpoint import load_into
from semflow.training.choice import FlowChoice

IMAGES = make_images(10)
BATCH = torch.stack([sample.image for sample in IMAGES])


def optional(seed: int = 0, synthesis=None):
    return make_fitted(seed, trained=True, synthesis=synthesis, optional=True)


def prepared(size: float = 0.3):
    """A detector whose flows are far from the identity."""
    detector = optional()
    with torch.no_grad():
        for number, parameter in enumerate(detector.trainable()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(size * noise)
    detector.prepare([BATCH])
    return detector.eval()


def truth(detector, images=BATCH, inside=None) -> float:
    """The spread, from slogdet of the Jacobian at each location, where `inside` (k, B, H, W) is true."""
    spreads = []
    for k, (flow, maps) in enumerate(zip(detector.flows, detector.features(images), strict=True)):
        columns = maps.permute(0, 2, 3, 1).double().flatten(0, 2)
        inner, found = flow.flow.double(), []
        for x in columns:
            jacobian = torch.autograd.functional.jacobian(lambda x, f=inner: f(x[None, :, None, None])[0].flatten(), x)
            found.append(torch.linalg.slogdet(jacobian).logabsdet.item() / len(x))
        inner.float()
        kept = np.asarray(found) if inside is None else np.asarray(found)[inside[k].flatten().numpy()]
        spreads.append(np.std(kept))
    return float(np.mean(spreads))


def test_spread_is_that_of_the_jacobians() -> None:
    detector = prepared()
    few = BATCH[:3]
    expected = truth(detector, few)
    assert expected > 0.01
    for batches in ([few], few.split(1), [NormalBatch(few, detector.features(few))]):
        assert choose_flow(detector, batches) == pytest.approx(expected, rel=1e-5)
    assert [flow.spread for flow in detector.flows] == pytest.approx([expected] * 2, rel=1e-5)


def test_spread_counts_locations_in_the_region_alone() -> None:
    detector = prepared()
    region = torch.zeros(32, 32)
    region[4:12, 8:24] = 1
    detector.set_region(region)
    gray = detector.see(BATCH[:2]).images
    inside = [torch.nn.functional.max_pool2d(region[None], s).expand(2, -1, -1) > 0 for s in (4, 8)]
    assert choose_flow(detector, [BATCH[:2]]) == pytest.approx(truth(detector, gray, inside), rel=1e-5)


@pytest.mark.parametrize(("scale", "used"), [(0.99, True), (1.01, False)])
def test_flow_is_used_up_to_the_largest_spread(scale, used, monkeypatch) -> None:
    detector = prepared()
    spread = choose_flow(detector, [BATCH])
    monkeypatch.setattr(module, "LARGEST_SPREAD", spread / scale)
    for flow in detector.flows:
        flow.use(not used)
    assert choose_flow(detector, [BATCH]) == spread
    assert [flow.used for flow in detector.flows] == [used] * 2


def test_constant_stretching_has_no_spread() -> None:
    detector = make_detector(synthesis=False)
    detector.flows = ScaleWise([OptionalFlow(GlobalAffine(c, start=30.0)) for c in (6, 8)])
    assert choose_flow(detector, [BATCH]) < 1e-6


def test_measuring_changes_nothing_else() -> None:
    detector = prepared().train()
    modes = {name: part.training for name, part in detector.named_modules()}
    before = {name: x.clone() for name, x in detector.state_dict().items() if "choice" not in name}
    torch.manual_seed(1)
    drawn = torch.get_rng_state()
    choose_flow(detector, [BATCH])
    assert {name: part.training for name, part in detector.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(x, detector.state_dict()[name]) for name, x in before.items())


def test_images_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"^batches must hold at least one batch of normal images, but got none$"):
        choose_flow(prepared(), [])
    with pytest.raises(SemflowError, match="images must"):
        choose_flow(prepared(), [255 * BATCH])


def decided(monkeypatch, *spreads: float) -> list[int]:
    """Let the spreads be known; return the numbers of images that they are measured on."""
    left, seen = iter(spreads), []

    def measured(_, batches) -> float:
        seen.append(sum(len(batch.images) for batch in batches))
        return next(left)

    monkeypatch.setattr(module, "_log_det_spread", measured)
    return seen


@pytest.mark.parametrize("used", [True, False])
def test_fitted_detector_is_that_of_the_choice(used, monkeypatch, tmp_path) -> None:
    decided(monkeypatch, *[0.1 if used else 0.4] * 9)
    detector = fit(optional(), IMAGES, output=tmp_path / "run", progress=False)
    assert [flow.used for flow in detector.flows] == [used, used]
    batch = torch.stack([sample.image for sample in make_images(3, seed=4)])
    prediction = detector.predict(batch)
    with torch.no_grad():
        maps = detector.features(batch)
        latents = [scale.z for scale in detector.encode(batch)]
    assert all(torch.equal(z, x) == (not used) for z, x in zip(latents, maps, strict=True))
    assert len(detector.bases[0].rows) == 10
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["flow_used"], summary["log_det_spread"]) == (used, pytest.approx(0.1 if used else 0.4))
    for other in (
        load_into(optional(seed=3), tmp_path / "run").eval(),
        fit(optional(), IMAGES, output=tmp_path / "run", resume=True, progress=False),
    ):
        assert [flow.used for flow in other.flows] == [used, used]
        assert torch.equal(other.predict(batch).anomaly_map, prediction.anomaly_map)


@pytest.mark.parametrize(("spreads", "epochs"), [((0.31, 0.0), 2), ((0.29, 0.31), 8), ((0.1, 0.2), 8)])
def test_uneven_flow_is_left_out_after_a_quarter(spreads, epochs, monkeypatch, tmp_path) -> None:
    """The detector is then that of a training without the flow, and its parameters are those of that epoch."""
    seen = decided(monkeypatch, *spreads)
    detector = fit(optional(), IMAGES, epochs=8, output=tmp_path / "run", progress=False)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(1, epochs + 1))
    assert seen == [10] * (1 if epochs == 2 else 2)
    last = spreads[len(seen) - 1]
    assert [flow.used for flow in detector.flows] == [last <= 0.3] * 2
    assert detector.flows[0].spread == pytest.approx(last)
    decided(monkeypatch, 0.1, 0.1)
    after = {}

    def keep(other, epoch) -> None:
        after[epoch] = [p.detach().clone() for p in other.trainable()]

    fit(optional(), IMAGES, epochs=8, progress=False, callbacks=[AfterEpoch(keep)])
    assert all(torch.equal(a, b) for a, b in zip(detector.trainable(), after[epochs], strict=True))


def test_flow_that_was_never_trained_is_left_out(monkeypatch) -> None:
    seen = decided(monkeypatch)
    detector = fit(optional(), IMAGES, epochs=0, progress=False)
    assert [(flow.used, flow.spread) for flow in detector.flows] == [(False, 0.0)] * 2
    assert not seen


def test_flow_of_a_fitted_detector_is_measured_without_steps(monkeypatch) -> None:
    decided(monkeypatch, 0.1, 0.2, 0.05)
    detector = fit(optional(), IMAGES, progress=False)
    fit(detector, IMAGES, epochs=0, progress=False)
    assert (detector.flows[0].used, detector.flows[0].spread) == (True, pytest.approx(0.05))


def test_flow_that_was_left_out_is_trained_again(monkeypatch) -> None:
    decided(monkeypatch, *[0.4] * 4)
    detector = fit(optional(), IMAGES, progress=False)
    before = [p.clone() for p in detector.trainable()]
    fit(detector, IMAGES, progress=False)
    assert any(not torch.equal(p, b) for p, b in zip(detector.trainable(), before, strict=True))
    assert not detector.flows[0].used


@pytest.mark.parametrize("cache", [0, 2**31])
def test_at_most_24_images_are_measured_evenly_spaced(cache, monkeypatch) -> None:
    """Maps that training has kept are not computed again."""
    many, taken, computed = make_images(60), [], []

    def measured(detector, batches) -> float:
        forward = detector.features.forward
        with monkeypatch.context() as patched:
            patched.setattr(detector.features, "forward", lambda x: computed.append(len(x)) or forward(x))
            return whole(detector, keep(batches))

    def keep(batches):
        for batch in batches:
            taken.extend(batch.images)
            yield batch

    whole = module._log_det_spread
    monkeypatch.setattr(module, "_log_det_spread", measured)
    fit(optional(), many, epochs=1, progress=False, cache_bytes=cache)
    expected = [many[math.floor((k + 0.5) * 2.5)].image for k in range(24)]
    assert len(taken) == 24
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))
    assert sum(computed) == (0 if cache else 24)


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
    resumed = fit(optional(), IMAGES, output=tmp_path / "run", resume=True, progress=False)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert [flow.used for flow in resumed.flows] == [flow.used for flow in whole.flows]


def test_base_that_is_not_fitted_may_have_an_optional_flow() -> None:
    detector = make_detector(synthesis=False)
    detector.flows = ScaleWise([OptionalFlow(GlobalAffine(c)) for c in (6, 8)])
    fit(detector, IMAGES, epochs=1, progress=False)
    assert optional_flows(detector)[0].used


def test_flow_that_is_not_optional_is_not_measured(monkeypatch) -> None:
    seen = decided(monkeypatch)
    detector = optional(synthesis=CutPaste())
    for flow in detector.flows:
        flow.optional = False
    fit(detector, IMAGES, progress=False)
    assert detector.flows[0].used
    assert not seen


def test_category_with_the_largest_spread_decides(monkeypatch) -> None:
    class Two(list):
        categories = ("a", "b") * 15

    images, seen = Two(make_images(30)), []

    def measured(_, batches) -> float:
        seen.append(torch.cat([batch.images for batch in batches]))
        return 0.2 if len(seen) % 2 else 0.4

    monkeypatch.setattr(module, "_log_det_spread", measured)
    detector = fit(optional(), images, epochs=1, progress=False)
    assert [(flow.used, round(flow.spread, 6)) for flow in detector.flows] == [(False, 0.4)] * 2
    assert len(seen) == 2
    for first, found in enumerate(seen):
        assert torch.equal(found, torch.stack([sample.image for sample in images[first::2]]))
