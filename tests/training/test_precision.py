"""Training steps in bfloat16, on a CPU, where the small detectors have no convolution with wrong gradients."""

import json

import pytest
import torch

from helpers.devices import DEVICE
from helpers.small_detector import make_detector, make_images
from semflow.data import collate
from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError
from semflow.recipes import Backbone, Couplings, build, sanflow
from semflow.synthesis import CutPaste, SyntheticAnomalies
from semflow.training import TrainingConfig, fit
from semflow.training.stepping import train_on_batch

IMAGES = make_images(8)


@pytest.fixture(autouse=True)
def cpu(monkeypatch) -> None:
    monkeypatch.setattr("semflow.training.stepping.BF16_DEVICES", ("cuda", "cpu"))


def step(detector: Detector, synthesis: bool = True, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the terms of the loss and the gradient."""
    batch = collate([SyntheticAnomalies(IMAGES, CutPaste(), seed=1)[i] for i in range(8)])
    optimizer = torch.optim.SGD(detector.train().trainable(), 0.0)
    masks = batch.anomaly_masks if synthesis else None
    terms = train_on_batch(detector, optimizer, TrainingConfig(**options), batch.images, masks)
    gradients = [p.grad for p in detector.trainable() if p.grad is not None]
    assert all(g.dtype == torch.float32 for g in gradients)
    return terms, torch.cat([g.flatten() for g in gradients])


BACKBONE = Backbone("test_efficientnet", "random", (4, 8))
DETECTORS = {
    "small": make_detector,
    "sanflow": lambda: sanflow(BACKBONE, 32, Couplings(2, 16)),
    "fastflow": lambda: build("fastflow", {"backbone": "test_efficientnet", "backbone.weights": "random"}),
}


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "batch_size": 4}, {"locations": 40}, {"tilt": 0.1}], ids=str)
@pytest.mark.parametrize("name", DETECTORS)
def test_loss_and_gradient_are_near_those_of_float32(name: str, options: dict) -> None:
    """Loss within 3 %, gradient within 15 % of its length (float32: 1e-6)."""
    if name == "fastflow" and "locations" in options:
        pytest.skip("its event is the sample")
    synthesis = name != "fastflow"
    exact, gradient = step(DETECTORS[name](), synthesis, **options)
    terms, rough = step(DETECTORS[name](), synthesis, precision="bf16", **options)
    assert terms.dtype == torch.float32
    torch.testing.assert_close(terms, exact, rtol=0.03, atol=0.03)
    assert 0 < (rough - gradient).norm() < 0.15 * gradient.norm()


def test_steps_between_forward_passes_use_the_new_weights() -> None:
    """With groups of locations, weights change within a batch, and casts of the old ones must not be used."""
    losses = {}
    for precision in ("float32", "bf16"):
        detector = make_detector(synthesis=False).train()
        optimizer = torch.optim.SGD(detector.trainable(), 3e-3)
        training = TrainingConfig(locations=40, precision=precision)
        images = torch.stack([sample.image for sample in IMAGES])
        losses[precision] = [train_on_batch(detector, optimizer, training, images)[0].item() for _ in range(3)]
    assert losses["bf16"] == pytest.approx(losses["float32"], abs=0.03)
    untrained, _ = step(make_detector(synthesis=False), synthesis=False)
    assert losses["float32"][2] < 0.6 * untrained[0]


@pytest.mark.parametrize("synthesis", [True, False])
def test_fit_keeps_weights_scores_and_files_in_float32(synthesis: bool, tmp_path) -> None:
    training = TrainingConfig(2, 4)
    exact = fit(make_detector(synthesis=synthesis), IMAGES, training, progress=False)
    options = {"training": training, "precision": "bf16", "output": tmp_path, "progress": False}
    detector = fit(make_detector(synthesis=synthesis), IMAGES, **options)
    assert {x.dtype for x in detector.state_dict().values() if x.is_floating_point()} == {torch.float32}
    differ = [not torch.equal(p, q) for p, q in zip(detector.trainable(), exact.trainable(), strict=True)]
    assert any(differ)
    score, expected = (d.predict(IMAGES[0].image[None]).score for d in (detector, exact))
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, expected, rtol=0.3, atol=0.1)
    assert json.loads((tmp_path / "config.json").read_text())["training"]["precision"] == "bf16"
    with pytest.raises(CheckpointError, match=r"training.precision = bf16, but got float32$"):
        fit(make_detector(synthesis=synthesis), IMAGES, training, output=tmp_path, resume=True, progress=False)
    again = fit(make_detector(synthesis=synthesis), IMAGES, **options, resume=True)
    assert torch.equal(again.predict(IMAGES[0].image[None]).score, score)


def test_run_of_a_version_without_the_settings_is_resumed(tmp_path) -> None:
    whole = fit(make_detector(), IMAGES, epochs=1, output=tmp_path, progress=False)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("accumulate", "precision"):
        del config["training"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = fit(make_detector(), IMAGES, epochs=1, output=tmp_path, resume=True, progress=False)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in whole.state_dict().items())


def test_device_and_type_must_allow_it(monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"^precision must be float32 for torch.float64 on device cpu, but got bf16$"):
        fit(make_detector().double(), IMAGES, precision="bf16", progress=False)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"^precision must be float32 for torch.float32 on device cpu, but got bf16$"):
        fit(make_detector(), IMAGES, precision="bf16", device="cpu", progress=False)


@pytest.mark.cuda
def test_cuda_trains_in_bfloat16(monkeypatch) -> None:
    if DEVICE == "cuda":
        monkeypatch.undo()
    exact, rough = (
        fit(make_detector(), IMAGES, precision=p, device=DEVICE, progress=False) for p in ("float32", "bf16")
    )
    image = IMAGES[0].image[None].to(DEVICE)
    torch.testing.assert_close(rough.predict(image).score, exact.predict(image).score, rtol=0.3, atol=0.1)


@pytest.mark.parametrize("wrong", ["fp16", "bfloat16", 16, torch.bfloat16])
def test_unknown_precision_is_refused(wrong) -> None:
    with pytest.raises(ConfigError, match=r"^precision must be float32 or bf16, but got "):
        TrainingConfig(precision=wrong)
