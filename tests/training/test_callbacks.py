"""Callbacks of `fit`: when they are called, and what is kept if one raises."""

import json

import pytest
import torch

from helpers.small_detector import make_images
from semflow.data import Sample
from semflow.errors import ConfigError
from semflow.training import Callback, fit
from semflow.training.checkpoint import load_into


@pytest.fixture
def images() -> list[Sample]:
    return make_images(5)


class Recorder(Callback):
    """Notes its calls, and raises in the one named `fails`, such as `epoch 2`."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls, self.starts = fails, [], []

    def note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails:
            raise LookupError(call)

    def begin(self, detector, start) -> None:
        self.starts.append(start)
        self.note(f"begin {[record['epoch'] for record in start.records]}")

    def epoch(self, detector, record) -> None:
        assert detector.training
        self.note(f"epoch {record['epoch']}")

    def end(self, detector, summary) -> None:
        assert not detector.training
        assert detector.predict(torch.rand(1, 3, 32, 32)).score.isfinite()
        assert summary["recipe"] == "small"
        self.note("end")

    def close(self) -> None:
        self.note("close")


WHOLE = ["begin []", "epoch 1", "epoch 2", "epoch 3", "end", "close"]


@pytest.mark.parametrize("stored", [True, False])
def test_callbacks_are_called_in_order(stored, build, images, tmp_path) -> None:
    first, second = Recorder(), Recorder()
    output = tmp_path / "run" if stored else None
    trained = fit(build(), images, output=output, callbacks=(first, second), progress=False)
    assert first.calls == second.calls == WHOLE
    (start,) = first.starts
    assert (start.folder, start.rank) == (output, 0)
    assert start.settings["training.epochs"] == 3
    assert start.settings["images"] == 5
    plain = fit(build(), images, progress=False).state_dict()
    assert all(torch.equal(x, plain[name]) for name, x in trained.state_dict().items())


def test_summary_is_that_of_the_file(build, images, tmp_path) -> None:
    found = []

    class Keep(Callback):
        def end(self, detector, summary) -> None:
            found.append(dict(summary))

    fit(build(), images, calibration=2, false_alarm_rate=0.5, output=tmp_path, callbacks=[Keep()], progress=False)
    assert found == [json.loads((tmp_path / "summary.json").read_text())]
    assert found[0]["calibration_images"] == 2


@pytest.mark.parametrize("fails", ["begin []", *WHOLE[1:]])
def test_run_survives_a_callback_that_raises(fails, build, images, tmp_path) -> None:
    """The error passes through, other callbacks are closed, and the resumed run is that of an uninterrupted one."""
    failing, other = Recorder(fails), Recorder()
    with pytest.raises(LookupError, match=fails.replace("[", r"\[").replace("]", r"\]")):
        fit(build(), images, output=tmp_path, callbacks=[failing, other], progress=False)
    assert failing.calls[-1] == "close"
    assert other.calls[-1] == "close" or fails == "close"
    again = Recorder()
    resumed = fit(build(), images, output=tmp_path, resume=True, callbacks=[again], progress=False)
    done = {"begin []": 0, "epoch 1": 1, "epoch 2": 2}.get(fails, 3)
    assert again.calls == [
        f"begin {list(range(1, done + 1))}", *(f"epoch {k}" for k in range(done + 1, 4)), "end", "close",
    ]  # fmt: skip
    whole = fit(build(), images, progress=False).state_dict()
    assert all(torch.equal(x, whole[name]) for name, x in resumed.state_dict().items())
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_training_that_fails_closes_callbacks(build, images) -> None:
    class Stop(Callback):
        def epoch(self, detector, record) -> None:
            raise KeyboardInterrupt

    other = Recorder("close")  # its error does not hide the first one
    with pytest.raises(KeyboardInterrupt):
        fit(build(), images, callbacks=[other, Stop()], progress=False)
    assert other.calls == ["begin []", "epoch 1", "close"]


def test_detector_without_training_has_a_begin_and_an_end(build, images, tmp_path) -> None:
    seen = Recorder()
    fit(build(), images, epochs=0, output=tmp_path, callbacks=[seen], progress=False)
    assert seen.calls == ["begin []", "end", "close"]


def test_longer_run_calls_the_new_epochs(build, images, tmp_path) -> None:
    fit(build(), images, output=tmp_path, progress=False)
    seen = Recorder()
    fit(build(), images, epochs=4, output=tmp_path, resume=True, callbacks=[seen], progress=False)
    assert seen.calls == ["begin [1, 2, 3]", "epoch 4", "end", "close"]
    assert load_into(build(), tmp_path).state_dict()


def test_damaged_log_does_not_end_a_finished_run(build, images, tmp_path) -> None:
    fit(build(), images, output=tmp_path, progress=False)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join([lines[0], lines[1][:20], lines[2]]))
    seen = Recorder()
    fit(build(), images, output=tmp_path, resume=True, callbacks=[seen], progress=False)
    assert seen.calls == ["begin [1]", "end", "close"]


@pytest.mark.parametrize("wrong", [print, [print], [Recorder], Recorder(), "tensorboard", None])
def test_wrong_callbacks_are_refused_at_once(wrong, build) -> None:
    with pytest.raises(ConfigError, match=r"callbacks must be a list of semflow.training.Callback, but got \w+$"):
        fit(build(), [], callbacks=wrong, progress=False)
