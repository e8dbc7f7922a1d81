"""Gradient accumulation: several batches make the step of one that is as many times as large."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.small_detector import make_detector, make_images
from semflow.bases import StandardNormal
from semflow.data import collate
from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError
from semflow.features import FrozenFeatures
from semflow.flows import GlobalAffine, PyramidSequence, ScaleWise, coupling_stack
from semflow.nn import ConvSubnet
from semflow.objectives import PRESETS, Objective
from semflow.synthesis import CutPaste, SyntheticAnomalies
from semflow.training import TrainingConfig, fit
from semflow.training.stepping import train_on_batch

IMAGES = make_images(12)


def semantic() -> Detector:
    """Per-location flows with a variance that is predicted from the image, by a network with batch norms."""
    return make_detector().double().train()


def convolutional(joint: bool) -> Detector:
    """A flow of the whole sample, or one of all scales."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        conv = [nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(3, 6, 8, stride=8)]
        network = Both(*conv)
        features = FrozenFeatures(network, channels=(4, 6), strides=(4, 8))
        flows = [coupling_stack(c, 2, (ConvSubnet,)) for c in (4, 6)]
        pyramid = PyramidSequence([ScaleWise(flows), ScaleWise([GlobalAffine(4), GlobalAffine(6)])])
        return (
            Detector(features, pyramid if joint else flows, StandardNormal(), objective=Objective(bce=0))
            .double()
            .train()
        )


class Both(nn.Module):
    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x):
        return [network(x) for network in self.networks]


DETECTORS = {
    "semantic": semantic,
    "samples": lambda: convolutional(joint=False),
    "pyramid": lambda: convolutional(joint=True),
}


def step(detector: Detector, training: TrainingConfig, count: int, known: bool = False):
    """Return loss and gradients of a step on the first images, which have synthetic anomalies of many sizes."""
    batch = collate([SyntheticAnomalies(IMAGES, CutPaste(), seed=1)[i] for i in range(count)])
    optimizer = torch.optim.SGD(detector.trainable(), 0.0)
    images = batch.images.double()
    maps = detector.features(images) if known else None
    terms = train_on_batch(detector, optimizer, training, images, batch.anomaly_masks, maps)
    return terms, [p.grad for p in detector.trainable()]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", DETECTORS)
def test_four_batches_of_two_make_the_step_of_eight(name: str, known: bool) -> None:
    whole, gradients = step(DETECTORS[name](), TrainingConfig(batch_size=8), 8, known)
    terms, summed = step(DETECTORS[name](), TrainingConfig(batch_size=2, accumulate=4), 8, known)
    torch.testing.assert_close(terms, whole, rtol=1e-10, atol=1e-10, check_dtype=False)
    assert len(gradients) > 5
    for one, other in zip(summed, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("synthesis", [False, True])
def test_regions_of_interest_of_different_sizes_count_for_the_whole_batch(own: bool, synthesis: bool) -> None:
    """The batch has images whose region is everywhere in one of its chunks, or the detector has a region."""
    images = torch.stack([sample.image for sample in IMAGES[:8]]).double()
    masks = torch.zeros(8, 32, 32, dtype=torch.bool)
    masks[::3, 4:14, 6:20] = True
    if own:
        inside = torch.ones(8, 1, 32, 32, dtype=torch.float64)
        inside[3:6, :, :20] = 0
        images = torch.cat([images, inside], 1)
    found = []
    for training in (TrainingConfig(batch_size=8), TrainingConfig(batch_size=3, accumulate=3)):
        detector = semantic()
        detector.set_region(None if own else torch.ones(32, 32).tril() > 0)
        optimizer = torch.optim.SGD(detector.trainable(), 0.0)
        terms = train_on_batch(detector, optimizer, training, images, masks if synthesis else None)
        found.append((terms, [p.grad for p in detector.trainable()]))
    (whole, gradients), (terms, summed) = found
    torch.testing.assert_close(terms, whole, rtol=1e-10, atol=1e-10, check_dtype=False)
    for one, other in zip(summed, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(2, 6), st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_any_division_makes_the_same_step(count: int, size: int, accumulate: int, guard: int) -> None:
    count = min(count, size * accumulate)
    whole, gradients = step(semantic(), TrainingConfig(batch_size=count, guard=guard), count)
    training = TrainingConfig(batch_size=size, accumulate=accumulate, guard=guard)
    terms, summed = step(semantic(), training, count)
    torch.testing.assert_close(terms, whole, rtol=1e-10, atol=1e-10, check_dtype=False)
    for one, other in zip(summed, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_no_more_images_are_computed_at_once(monkeypatch) -> None:
    seen = []
    loss = Detector.loss

    def counted(self, images, *rest):
        seen.append(len(images))
        return loss(self, images, *rest)

    monkeypatch.setattr(Detector, "loss", counted)
    fit(make_detector(), IMAGES[:11], TrainingConfig(1, 2, accumulate=3), progress=False)
    assert seen == [2, 2, 2, 2, 2, 1]


def test_clipping_and_objective_are_those_of_the_step() -> None:
    detector = semantic()
    objective = detector.objective
    _, gradients = step(detector, TrainingConfig(batch_size=2, accumulate=4, clip=1e-3), 8)
    assert torch.cat([g.flatten() for g in gradients if g is not None]).norm().item() == pytest.approx(1e-3, rel=1e-6)
    assert detector.objective is objective


def log(run) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_steps_schedule_and_log_count_optimizer_steps(tmp_path) -> None:
    def train(name: str, **options) -> list[dict]:
        detector = make_detector(synthesis=False)
        for flow in detector.modules():
            if isinstance(flow, nn.BatchNorm2d):
                flow.momentum = 0.0
        fit(detector, IMAGES, TrainingConfig(2, **options), output=tmp_path / name, progress=False)
        return log(tmp_path / name)

    large, several = train("large", batch_size=6), train("several", batch_size=2, accumulate=3)
    for one, other in zip(large, several, strict=True):
        assert one["steps"] == other["steps"] == 2
        assert one["learning_rate"] == other["learning_rate"]
    assert several[0]["loss"] == pytest.approx(large[0]["loss"], rel=0.2)  # batch norms differ
    assert TrainingConfig(steps=5, batch_size=2, accumulate=3).for_images(12).epochs == 3


def test_accumulated_run_is_resumed_within_an_epoch(tmp_path) -> None:
    training = TrainingConfig(2, 2, accumulate=2)
    whole = fit(make_detector(), IMAGES, training, progress=False).state_dict()
    calls = []

    def stop(*arguments) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("semflow.training.progress.Progress.step", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(make_detector(), IMAGES, training, output=tmp_path, checkpoint_seconds=0, progress=False)
    with pytest.raises(CheckpointError, match=r"training.accumulate = 2, but got 1$"):
        fit(make_detector(), IMAGES, TrainingConfig(2, 2), output=tmp_path, resume=True, progress=False)
    resumed = fit(make_detector(), IMAGES, training, output=tmp_path, resume=True, progress=False).state_dict()
    assert all(torch.equal(x, resumed[name]) for name, x in whole.items())


@pytest.mark.parametrize("other", [{"locations": 40}, {"tilt": 0.1}])
def test_losses_of_several_steps_or_of_the_whole_batch_are_refused(other: dict) -> None:
    (name,) = other
    with pytest.raises(ConfigError, match=f"^accumulate must be 1 with {name}, but got 2; set {name} to None$"):
        TrainingConfig(accumulate=2, **other)
    assert TrainingConfig(accumulate=1, **other).images_per_step == 8


def test_squashed_loss_is_refused() -> None:
    detector = make_detector()
    detector.objective = PRESETS["reference"]
    with pytest.raises(ConfigError, match=r"^accumulate must be 1 for a squashed loss, but got 2; use batch_size$"):
        fit(detector, IMAGES, TrainingConfig(accumulate=2), progress=False)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_accumulate_must_be_a_positive_number(wrong) -> None:
    with pytest.raises(ConfigError, match=r"^accumulate must be "):
        TrainingConfig(accumulate=wrong)
