"""Cross-conformal calibration: each image is scored by a model that has not seen it."""

import json

import pytest
import torch

from helpers.fitted_base import make_fitted
from helpers.recipe_cases import FITTED, images, small, stack
from helpers.small_detector import make_images
from semflow.bases import Memory
from semflow.detectors import conformal_p_values
from semflow.errors import CheckpointError, ConfigError, DataError
from semflow.recipes import load
from semflow.synthesis import CutPaste
from semflow.training import calibrate, fit, optional_flows, refit
from semflow.training import crossing as crossing_module
from semflow.training.checkpoint import FOLDS, SUMMARY
from semflow.training.crossing import Crossing, leaves_one_out, split_folds
from semflow.training.holdout import automatic_calibration

QUIET = {"progress": False}


def others(dataset: list, held) -> list:
    return [x for i, x in enumerate(dataset) if i not in held]


def without_each(make, dataset: list, **options) -> torch.Tensor:
    """Return score and maximum of the map of each image by a detector that is fitted to all others."""
    found = []
    for i, sample in enumerate(dataset):
        alone = fit(make(), others(dataset, [i]), **QUIET, **options).predict(stack([sample]))
        found.append(torch.stack([alone.score[0], alone.anomaly_map.max()]))
    return torch.stack(found, 1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("padim", {}),
        ("patchcore", {"coreset": 1.0}),
        ("patchcore", {"coreset": 1.0, "image_neighbors": None}),
        ("spade", {"gallery": 3}),
    ],
)
def test_one_pass_scores_are_those_of_detectors_fitted_to_the_other_images(name, settings) -> None:
    dataset = images(9)
    detector = fit(small(name, settings), dataset, calibration="cross", **QUIET)
    expected = without_each(lambda: small(name, settings), dataset).sort(1).values
    torch.testing.assert_close(detector.calibration.scores, expected[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(detector.calibration.maxima, expected[1], rtol=2e-3, atol=2e-3)
    assert (detector.false_alarm_rate, detector.provenance.calibration) == (0.1, "cross")
    plain = fit(small(name, settings), dataset, **QUIET)
    for a, b in zip(plain.predict(stack(dataset))[:2], detector.predict(stack(dataset))[:2], strict=True):
        assert torch.equal(a, b)  # all images are trained on
    assert not torch.equal(plain.predict(stack(dataset)).score.sort().values, detector.calibration.scores)


@pytest.mark.parametrize("optional", [False, True])
def test_trained_scores_are_those_of_models_of_the_other_folds(optional) -> None:
    dataset, seed = make_images(12), 3
    made = {"trained": True, "synthesis": CutPaste() if optional else None, "optional": optional}
    detector = fit(make_fitted(**made), dataset, calibration="cross", seed=seed, false_alarm_rate=0.2, **QUIET)
    expected = torch.zeros(2, len(dataset))
    for held in split_folds(len(dataset), seed):
        model = make_fitted(**made)
        for flow, chosen in zip(optional_flows(model), optional_flows(detector), strict=True):
            flow.use(chosen.used)
            flow.optional = False
        learned = not optional or detector.flows[0].used
        fit(model, others(dataset, held), seed=seed, **QUIET, **({} if learned else {"epochs": 0}))
        found = model.predict(stack([dataset[i] for i in held]))
        expected[:, held] = torch.stack([found.score, found.anomaly_map.flatten(1).amax(1)])
    torch.testing.assert_close(detector.calibration.scores, expected[0].sort().values)
    torch.testing.assert_close(detector.calibration.maxima, expected[1].sort().values)
    whole = fit(make_fitted(**made), dataset, seed=seed, **QUIET)
    assert torch.equal(whole.predict(stack(dataset)).score, detector.predict(stack(dataset)).score)


def test_folds_have_every_image_once_and_depend_on_the_seed() -> None:
    for count in (2, 9, 48, 61):
        folds = split_folds(count)
        assert sorted(i for held in folds for i in held) == list(range(count))
        assert len(folds) == min(5, count)
        assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert split_folds(48, 1) != split_folds(48)


def test_memory_whose_flow_is_left_out_needs_no_other_models(monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a model was trained")

    monkeypatch.setattr(Crossing, "_fold", refused)
    monkeypatch.setattr("semflow.training.choice.LARGEST_SPREAD", -1.0)
    detector = fit(small("memory_flow", {"memory": 10**4}), images(9), calibration="cross", epochs=1, **QUIET)
    assert not detector.flows[0].used
    assert leaves_one_out(detector)
    assert detector.calibration.count == 9


@pytest.mark.parametrize(("name", "cache"), [("patchcore", 2**31), ("patchcore", 0), ("memory_flow", 2**31)])
def test_coresets_are_chosen_again_without_the_images_of_a_fold(name, cache, monkeypatch) -> None:
    monkeypatch.setattr("semflow.training.choice.LARGEST_SPREAD", -1.0)  # memory_flow leaves its flow out
    dataset, epochs = images(9), {"epochs": 1} if name == "memory_flow" else {}
    detector = fit(small(name), dataset, calibration="cross", cache_bytes=cache, **QUIET, **epochs)
    assert not leaves_one_out(detector)
    expected = torch.zeros(2, len(dataset))
    for held in split_folds(len(dataset)):
        model = small(name)
        for flow in optional_flows(model):
            flow.use(False)
            flow.optional = False
        fit(model, others(dataset, held), **QUIET, epochs=0)  # nothing is trained
        found = model.predict(stack([dataset[i] for i in held]))
        expected[:, held] = torch.stack([found.score, found.anomaly_map.flatten(1).amax(1)])
    for a, b in zip((detector.calibration.scores, detector.calibration.maxima), expected, strict=True):
        torch.testing.assert_close(a, b.sort().values, rtol=1e-4, atol=1e-4)


def test_killed_calibration_goes_on_with_the_missing_models(tmp_path, monkeypatch) -> None:
    dataset, options = make_images(10), {**QUIET, "calibration": "cross"}
    whole = fit(make_fitted(trained=True), dataset, output=tmp_path / "whole", **options)
    fold, trained = Crossing._fold, []

    def counted(self, detector, held, normal):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(held)
        return fold(self, detector, held, normal)

    monkeypatch.setattr(Crossing, "_fold", counted)
    with pytest.raises(KeyboardInterrupt):
        fit(make_fitted(trained=True), dataset, output=tmp_path / "run", **options)
    assert (tmp_path / "run" / FOLDS).is_file()
    trained.append([])  # three, so that it does not stop
    resumed = fit(make_fitted(trained=True), dataset, output=tmp_path / "run", resume=True, **options)
    assert len(trained) == 3 + 3
    for name, x in whole.calibration.state_dict().items():
        assert torch.equal(resumed.calibration.state_dict()[name], x)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    assert json.loads((tmp_path / "run" / SUMMARY).read_text())["calibration_images"] == 10
    again = fit(make_fitted(trained=True), dataset, output=tmp_path / "run", resume=True, **options)
    assert len(trained) == 6  # nothing is trained again
    assert torch.equal(again.calibration.scores, whole.calibration.scores)


def test_damaged_or_foreign_folds_are_trained_again(tmp_path) -> None:
    dataset, options = make_images(10), {**QUIET, "calibration": "cross"}
    whole = fit(make_fitted(trained=True), dataset, **options)
    mark = {"training": {"epochs": 7}, "folds": [2] * 5}
    for content in (b"none", None):
        folder = tmp_path / str(content)
        fit(make_fitted(trained=True), dataset, output=folder, **QUIET)
        if content is None:
            crossing_module._write(folder, [crossing_module.NormalScores(*torch.zeros(3, 2, 2))], mark)
        else:
            (folder / FOLDS).write_bytes(content)
        resumed = fit(make_fitted(trained=True), dataset, output=folder, resume=True, **options)
        assert torch.equal(resumed.calibration.scores, whole.calibration.scores)


def test_resumed_runs_keep_their_kind_of_calibration(tmp_path) -> None:
    dataset, held = images(12), images(9, seed=5)
    options = {**QUIET, "resume": True, "output": tmp_path / "run"}
    first = fit(small("padim"), dataset, calibration="cross", output=tmp_path / "run", **QUIET)
    loaded = load(tmp_path / "run")
    assert loaded.provenance.calibration == "cross"
    assert torch.equal(loaded.calibration.scores, first.calibration.scores)
    again = fit(small("padim"), dataset, calibration="cross", **options)
    assert torch.equal(again.calibration.scores, first.calibration.scores)
    with pytest.raises(CheckpointError, match="must be resumed with calibration images of digest cross"):
        fit(small("padim"), dataset, calibration=held, **options)
    fit(small("padim"), dataset, calibration=held, output=tmp_path / "held", **QUIET)
    with pytest.raises(CheckpointError, match=r"with the calibration images that it was finished with, 9, but got"):
        fit(small("padim"), dataset, calibration="cross", output=tmp_path / "held", resume=True, **QUIET)
    # calibrated on other images, it is no longer cross
    assert calibrate(loaded, held).provenance.calibration not in ("", "cross")
    fit(small("padim"), dataset, output=tmp_path / "bare", **QUIET)
    late = fit(small("padim"), dataset, calibration="cross", output=tmp_path / "bare", resume=True, **QUIET)
    assert torch.equal(late.calibration.scores, first.calibration.scores)
    assert load(tmp_path / "bare").calibration.count == 12


@pytest.mark.parametrize("name", FITTED)
def test_refit_calibrates_memories_on_all_images(name) -> None:
    dataset = images(9)
    first = fit(small(name), dataset, calibration="cross", **QUIET)
    again = refit(fit(small(name), dataset, **QUIET), dataset, calibration="cross")
    torch.testing.assert_close(again.calibration.scores, first.calibration.scores, rtol=1e-4, atol=1e-5)
    assert again.provenance.calibration == "cross"


def test_what_cannot_be_is_refused_before_training(tmp_path) -> None:
    dataset = make_images(10)
    with pytest.raises(ConfigError, match=r"at least 99 images for .* 0.01, but got 10; .* at least 0.091"):
        fit(make_fitted(trained=True), dataset, calibration="cross", false_alarm_rate=0.01, output=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"^calibration must be a number, a data set or 'cross', but got 'crossed'$"):
        fit(make_fitted(trained=True), dataset, calibration="crossed")
    trained = fit(make_fitted(trained=True), dataset, **QUIET)
    with pytest.raises(DataError, match=r"^\d.png must not be a training image"):
        fit(trained, dataset, calibration="cross", **QUIET)
    with pytest.raises(ConfigError, match="for a trained flow, but got 'cross'"):
        refit(trained, dataset, calibration="cross")
    assert not list(tmp_path.iterdir())


def test_default_uses_all_images_where_a_fifth_is_too_few() -> None:
    assert automatic_calibration(48, 0.05) == "cross"
    assert automatic_calibration(200, 0.05) == 40
    assert automatic_calibration(60, 0.01) == "cross"  # then an error names what is missing
    assert automatic_calibration(5, 0.3) == "cross"
    assert automatic_calibration(1, 0.6) is None
    assert automatic_calibration(5) is None


def test_whole_memory_never_has_too_many_false_alarms() -> None:
    """A new image in the memory could only lower the scores of the others, with which it is exchangeable."""
    generator, trials, p_values = torch.Generator().manual_seed(0), 1000, []
    base, own = Memory("distance", neighbors=2), torch.arange(19)
    for _ in range(trials):
        z = torch.randn(20, 3, 2, 1, generator=generator)  # 19 images of two locations, and a new one
        base.store(z[:19].permute(0, 2, 3, 1).reshape(-1, 3), own.repeat_interleave(2))
        scores = -base.normality(z[:19], leave_out=own).flatten(1).amin(1)
        p_values.append(conformal_p_values(scores, -base.normality(z[19:]).flatten(1).amin(1)))
    for rate in (0.05, 0.1, 0.3):
        assert (torch.cat(p_values) <= rate).double().mean() <= rate + 3 * (rate * (1 - rate) / trials) ** 0.5
