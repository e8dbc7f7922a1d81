"""Bases that are fitted in one pass: the values, the one training path without gradient steps, saved states."""

import pytest
import torch
from torch.distributions import Independent, Normal

from helpers.fitted_base import DiagonalNormal, make_fitted
from helpers.small_detector import make_images
from semflow.bases import SemanticGaussian, StandardNormal
from semflow.detectors import Detector, LikelihoodModel, NormalBatch
from semflow.errors import CheckpointError, ConfigError
from semflow.flows import GlobalAffine
from semflow.training import calibrate, checkpoint, fit
from semflow.training.checkpoint import load_into


@pytest.fixture
def images():
    return make_images(10)


def stack(images):
    return torch.stack([sample.image for sample in images])


def latents(detector: Detector, batch):
    with torch.no_grad():
        return [scale.z.double() for scale in detector.eval().encode(batch)]


def truth(z, values):
    """Log density of values under a normal with the moments of each channel of z, both (B, C, H, W)."""
    rows = z.transpose(0, 1).flatten(1)
    normal = Independent(Normal(rows.mean(1), rows.std(1, correction=0)), 1)
    return normal.log_prob(values.movedim(1, -1))


def test_one_pass_fits_each_scale_to_all_latents(images) -> None:
    detector = fit(make_fitted(), images, progress=False)
    assert not detector.training
    test = stack(make_images(3, seed=9))
    for base, z, value in zip(detector.bases, latents(detector, stack(images)), latents(detector, test), strict=True):
        torch.testing.assert_close(base.log_prob(value), truth(z, value), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        found, _ = detector.log_probs(test)
    for flow, base, log_prob, value in zip(detector.flows, detector.bases, found, latents(detector, test), strict=True):
        expected = (base.log_prob(value) - flow[0].std.double().log().sum()) / value.shape[1]
        torch.testing.assert_close(log_prob.double(), expected, rtol=1e-4, atol=1e-4)


def test_score_constants_leave_out_each_image(images) -> None:
    detector = fit(make_fitted(score_log_det=False), images, progress=False)
    zs = latents(detector, stack(images))
    for k, z in enumerate(zs):
        own = [truth(torch.cat([z[:i], z[i + 1 :]]), z[i : i + 1]).max() / z.shape[1] for i in range(len(z))]
        assert detector.scorer.offsets[k].item() == pytest.approx(max(own).item(), abs=1e-5)


def test_batches_without_indices_count_the_images(images) -> None:
    detector = fit(make_fitted(), images, progress=False)
    offsets = detector.scorer.offsets.clone()
    detector.scorer.offsets.zero_()
    detector.fit_score([stack(images[:3]), NormalBatch(stack(images[3:]))])
    torch.testing.assert_close(detector.scorer.offsets, offsets)
    order = torch.tensor([7, 2, 9, 0, 1, 3, 4, 5, 6, 8])
    detector.fit_score([NormalBatch(stack(images)[order], None, order)])
    torch.testing.assert_close(detector.scorer.offsets, offsets)


def test_flow_is_trained_under_the_prior(images) -> None:
    """The trained flow is that of a detector whose base is the prior; what is fitted comes afterwards."""
    fitted, plain = make_fitted(trained=True), make_fitted(trained=True)
    plain.base = torch.nn.ModuleList([StandardNormal(), StandardNormal()])
    start = {name: p.clone() for name, p in fitted.flows.named_parameters()}
    fit(fitted, images, progress=False)
    fit(plain, images, progress=False)
    for name, p in fitted.flows.named_parameters():
        assert torch.equal(p, plain.flows.get_parameter(name)), name
    assert any(not torch.equal(p, start[name]) for name, p in fitted.flows.named_parameters())
    z = latents(fitted, stack(images))[0]
    torch.testing.assert_close(fitted.bases[0].log_prob(z), truth(z, z), rtol=1e-9, atol=1e-9)


def test_result_is_independent_of_cache_and_batch_size(images) -> None:
    whole = fit(make_fitted(), images, progress=False).state_dict()
    for options in ({"cache_bytes": 0}, {"batch_size": 3}, {"workers": 2}):
        other = fit(make_fitted(), images, progress=False, **options).state_dict()
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_run_without_gradient_steps_loads_calibrates_and_resumes(images, tmp_path) -> None:
    run = tmp_path / "run"
    detector = fit(make_fitted(), images, output=run, progress=False)
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "model.safetensors", "summary.json"]
    other = load_into(make_fitted(seed=1), run)
    assert other.bases[1].rows.shape == (10, 17)
    batch = stack(make_images(4, seed=3))
    assert torch.equal(other.predict(batch).score, detector.predict(batch).score)
    calibrate(other, make_images(12, seed=5))
    checkpoint.save_model(other, run)
    again = fit(make_fitted(), images, output=run, resume=True, progress=False)
    assert again.calibration.count == 12
    assert torch.equal(again.predict(batch).anomaly_map, detector.predict(batch).anomaly_map)


def test_calibration_holds_out_images_that_the_base_has_not_seen(images) -> None:
    detector = fit(make_fitted(), make_images(30), calibration=10, progress=False)
    assert detector.bases[0].rows.shape[0] == 20
    assert detector.calibration.count == 10


def test_killed_run_is_resumed_to_the_same_base(images, tmp_path, monkeypatch) -> None:
    whole = fit(make_fitted(trained=True), images, progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(Detector, "fit_base", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(make_fitted(trained=True), images, output=tmp_path / "run", checkpoint_seconds=0, progress=False)
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    resumed = fit(make_fitted(trained=True), images, output=tmp_path / "run", resume=True, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_gradient_steps_need_something_to_train(images) -> None:
    message = "^epochs must be 0 for a detector without trainable parameters, but got 3$"
    with pytest.raises(ConfigError, match=message):
        fit(make_fitted(), images, epochs=3, progress=False)


def test_one_fitted_base_for_several_scales_is_refused() -> None:
    flows = [GlobalAffine(4), GlobalAffine(8)]
    with pytest.raises(ConfigError, match="base must be a list of 2 if it is fitted, one per scale, but got one Diag"):
        LikelihoodModel(flows, DiagonalNormal())
    with pytest.raises(ConfigError, match=r"base must be one for all scales or 2, one per scale, but got 1$"):
        LikelihoodModel(flows, [StandardNormal()])
    mixed = LikelihoodModel(flows, [SemanticGaussian(), DiagonalNormal()])
    assert [type(mixed.training_base(k)) for k in range(2)] == [SemanticGaussian, StandardNormal]


def test_saved_state_must_hold_the_fitted_values(images) -> None:
    detector = fit(make_fitted(), images, progress=False)
    state = detector.state_dict()
    with pytest.raises(CheckpointError, match=r"^base\.1\.rows must be in the saved state, but got none;"):
        make_fitted().load_state_dict({k: v for k, v in state.items() if k != "base.1.rows"}, strict=False)
    with pytest.raises(CheckpointError, match=r"^rows must be \(M, 1 \+ 2C\), but got \(170,\);"):
        make_fitted().load_state_dict({**state, "base.1.rows": state["base.1.rows"].flatten()})


def test_distances_get_no_log_det(images) -> None:
    detector = fit(make_fitted(), images, progress=False)
    batch = stack(images[:2])
    with torch.no_grad():
        density, _ = detector.log_probs(batch)
        for base in detector.bases:
            base.is_density = False
        distance, _ = detector.log_probs(batch)
    for flow, a, b in zip(detector.flows, density, distance, strict=True):
        shift = -flow[0].std.log().mean()
        torch.testing.assert_close(a - b, shift.expand_as(a), rtol=1e-4, atol=1e-4)


class Both(DiagonalNormal):
    """Takes the features too."""

    uses_features = True

    class Seen:
        def __init__(self) -> None:
            self.pairs = []

        def update(self, z, features) -> None:
            self.pairs.append((z, features))

    def accumulator(self):
        return self.Seen()

    def fit(self, accumulator) -> None:
        self.seen = accumulator.pairs


def test_base_may_ask_for_the_features(images) -> None:
    detector = make_fitted()
    detector.base = torch.nn.ModuleList([Both(), DiagonalNormal()])
    batch = stack(images)
    detector.prepare([batch])
    detector.fit_base([batch])
    ((z, features),) = detector.bases[0].seen
    torch.testing.assert_close(features, detector.features(batch)[0])
    torch.testing.assert_close(z, detector.flows[0](features)[0])


def test_file_with_too_many_values_is_refused_before_it_is_read(images, tmp_path, monkeypatch) -> None:
    fit(make_fitted(), images, output=tmp_path, progress=False)
    detector = make_fitted()
    assert detector.flexible == {"region": 2**28, "base.0.rows": 2**31, "base.1.rows": 2**31, "calibration.": 10**7}
    monkeypatch.setattr(DiagonalNormal, "largest", 169)
    with pytest.raises(
        CheckpointError, match=r"must have \(0, 0\) of F64 for base\.1\.rows, but got \(10, 17\) of F64"
    ):
        load_into(detector, tmp_path)
