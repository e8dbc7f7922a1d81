"""Damaged and forged checkpoints: one clear error, and no more memory than the detector needs."""

import contextlib
import json
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import semflow
from helpers.after_epoch import AfterEpoch
from semflow.errors import CheckpointError, DataError, SemflowError
from semflow.files.tensors import LARGEST_HEADER, read_about
from semflow.training import calibrate, fit, hold_out
from semflow.training.checkpoint import CHECKPOINT, CONFIG, MODEL, load_into, read_config, save_model
from semflow.training.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    from helpers.small_detector import make_detector, make_images

    folder = tmp_path_factory.mktemp("fuzz") / "run"
    fit(make_detector(), make_images(4), epochs=1, output=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def detector(run):
    from helpers.small_detector import make_detector

    return load_into(make_detector(), run)


def parts(content: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def whole(header: object, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def first(header: dict) -> str:
    return next(name for name in header if name.startswith("flows."))


def of_header(change):
    def spoil(content: bytes) -> bytes:
        header, data = parts(content)
        changed = change(header)
        return whole(header if changed is None else changed, data)

    return spoil


def renamed(header: dict) -> None:
    header["flows.stranger"] = header.pop(first(header))


def other_name(name: str):
    def change(header: dict) -> None:
        header[name] = header.pop(first(header))

    return change


def entry(**changes):
    def change(header: dict) -> None:
        header[first(header)].update(changes)

    return change


def all_at_one_place(header: dict) -> None:
    for name in header.keys() - {"__metadata__"}:
        header[name]["data_offsets"] = header[first(header)]["data_offsets"]


PADDING = b" " * LARGEST_HEADER
SPOILED = {
    "empty": lambda c: b"",
    "seven bytes": lambda c: c[:7],
    "only a length": lambda c: c[:8],
    "half a header": lambda c: c[:100],
    "header alone": lambda c: whole(parts(c)[0], b""),
    "half the data": lambda c: c[: len(c) // 2],
    "one byte short": lambda c: c[:-1],
    "one byte long": lambda c: c + b"\0",
    "text": lambda c: b"this is a text and not a file of weights, but long enough for one",
    "a pickle": lambda c: pickle.dumps({"weights": [1.0] * 100}),
    "a zip, as torch.save writes": lambda c: b"PK\x03\x04" + c,
    "all zeros": lambda c: bytes(len(c)),
    "all ones": lambda c: b"\xff" * len(c),
    "header of 2^63 bytes": lambda c: whole(parts(c)[0], parts(c)[1], 2**63),
    "header of 2^64 - 1 bytes": lambda c: whole(parts(c)[0], parts(c)[1], 2**64 - 1),
    "header as long as the file": lambda c: whole(parts(c)[0], parts(c)[1], len(c)),
    "header length 0": lambda c: whole(parts(c)[0], parts(c)[1], 0),
    "header longer than is read": lambda c: whole(json.dumps(parts(c)[0]).encode() + PADDING, parts(c)[1]),
    "header of other text": lambda c: whole(b"{]", parts(c)[1]),
    "header not in UTF-8": lambda c: whole(b'{"\xff\xfe": 1}', parts(c)[1]),
    "header a list": of_header(lambda h: list(h)),
    "header nested deeply": lambda c: whole(b"[" * 100_000 + b"]" * 100_000, parts(c)[1]),
    "no tensor": of_header(lambda h: {}),
    "a name too many": lambda c: _added(c),
    "a name missing": lambda c: _without(c),
    "a name changed": of_header(renamed),
    "a name of a line break": of_header(other_name("flows.\n\x1b[31m")),
    "a name of 10,000 letters": of_header(other_name("x" * 10_000)),
    "another shape of one size": of_header(lambda h: h[first(h)].update(shape=[*h[first(h)]["shape"], 1])),
    "a shape of 10^15": of_header(entry(shape=[10**15])),
    "a shape that overflows": of_header(entry(shape=[2**40, 2**40])),
    "a negative shape": of_header(entry(shape=[-1])),
    "another type of one size": of_header(entry(dtype="I32")),
    "another type": of_header(entry(dtype="F64")),
    "no type": of_header(entry(dtype="FLOAT")),
    "offsets beyond the end": of_header(entry(data_offsets=[0, 10**12])),
    "offsets backwards": of_header(entry(data_offsets=[8, 0])),
    "offsets of another tensor": of_header(all_at_one_place),
    "offsets no numbers": of_header(entry(data_offsets=["a", "b"])),
    "metadata no JSON": of_header(lambda h: {**h, "__metadata__": {"semflow": "{"}}),
    "metadata nested deeply": of_header(lambda h: {**h, "__metadata__": {"semflow": "[" * 50_000}}),
    "metadata a number": of_header(lambda h: {**h, "__metadata__": {"semflow": "1"}}),
    "metadata of another format": of_header(lambda h: {**h, "__metadata__": {"semflow": '{"format": 99}'}}),
    "metadata no dictionary": of_header(lambda h: {**h, "__metadata__": 3}),
    "weights not finite": lambda c: _with_nan(c),
    "a constant of the score not finite": lambda c: _with_nan(c, "scorer.offsets"),
    "a statistic not finite": lambda c: _with_nan(c, ".running_var"),
}


def _tensors(content: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(content)


def _bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def _added(content: bytes) -> bytes:
    return _bytes({**_tensors(content), "flows.extra": torch.zeros(3)})


def _without(content: bytes) -> bytes:
    tensors = _tensors(content)
    del tensors[first(tensors)]
    return _bytes(tensors)


def _with_nan(content: bytes, ending: str = "weight") -> bytes:
    tensors = _tensors(content)
    name = next(n for n in sorted(tensors) if n.endswith(ending))
    tensors[name].view(-1)[0] = float("nan")
    return _bytes(tensors)


@pytest.mark.parametrize("kind", SPOILED)
def test_load_rejects_damaged_models_in_one_line(kind, run, detector, tmp_path) -> None:
    path = tmp_path / MODEL
    path.write_bytes(SPOILED[kind]((run / MODEL).read_bytes()))
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(detector, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path} must ")
    assert message.isprintable()
    assert len(message) < 600
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items()), "half of it was loaded"


@given(st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_load_survives_random_changes_of_bytes(run, detector, tmp_path, data) -> None:
    content = bytearray((run / MODEL).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        # The header is where a byte has a meaning.
        place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / MODEL).write_bytes(content[: data.draw(st.sampled_from([len(content), header, header + 100]))])
    with contextlib.suppress(CheckpointError):
        load_into(detector, tmp_path)
    load_into(detector, run)


@given(st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_load_detects_a_flipped_bit(run, detector, tmp_path, data) -> None:
    content = bytearray((run / MODEL).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.integers(header, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / MODEL).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"must match its digest|expected finite numbers"):
        load_into(detector, tmp_path)


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_load_rejects_random_bytes(detector, tmp_path, content) -> None:
    (tmp_path / MODEL).write_bytes(content)
    with pytest.raises(CheckpointError, match="must be a safetensors file, but got"):
        load_into(detector, tmp_path)


WHERE = [
    {"step": -7},
    {"step": 10**6},
    {"step": 4},
    {"step": float("inf")},
    {"epoch": float("inf")},
    {"epoch": 10**6},
    {"epoch": 10**400},
    {"epoch": 3, "step": 1},
    {"clipped": -1},
    {"steps": float("-inf")},
    {"largest": float("nan")},
    {"largest": 10**400},
    {"seconds": -1.0},
]


@pytest.mark.parametrize(
    "kind",
    ["half the data", "a name changed", "another type", "metadata no JSON", "text", "a statistic", *WHERE],
    ids=str,
)
def test_resume_rejects_damaged_checkpoints(kind, build, images, tmp_path, monkeypatch) -> None:
    save = Run.save

    def stop(self, at):
        save(self, at)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", stop)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(build(), images, output=folder, checkpoint_seconds=0, progress=False)
    path = folder / CHECKPOINT
    content = path.read_bytes()
    header, data = parts(content)
    if isinstance(kind, dict):
        about = json.loads(header["__metadata__"]["semflow"])
        about["at"].update(kind)
        header["__metadata__"]["semflow"] = json.dumps(about)
        path.write_bytes(whole(header, data))
    elif kind == "a name changed":
        header["optimizer.0.exp"] = header.pop("optimizer.0.exp_avg")
        path.write_bytes(whole(header, data))
    elif kind == "another type":
        header["optimizer.0.exp_avg"]["dtype"] = "I32"
        path.write_bytes(whole(header, data))
    elif kind == "a statistic":  # of a batch norm: training does not read it, and every score would be NaN
        (name, *_) = (n for n in header if n.endswith("running_var"))
        place = header[name]["data_offsets"][0]
        path.write_bytes(whole(header, data[:place] + struct.pack("<f", float("nan")) + data[place + 4 :]))
    else:
        path.write_bytes(SPOILED[kind](content))
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors must ") as caught:
        fit(build(), images, output=folder, resume=True, progress=False)
    assert str(caught.value).isprintable()


def test_resume_of_a_finished_run_rejects_other_images(build, images, tmp_path) -> None:
    fit(build(), images, epochs=1, output=tmp_path, progress=False)
    other = [images[0]._replace(image=1 - images[0].image), *images[1:]]
    with pytest.raises(CheckpointError, match="must be resumed with images of fingerprint"):
        fit(build(), other, epochs=1, output=tmp_path, resume=True, progress=False)
    fit(build(), images, epochs=1, output=tmp_path, resume=True, progress=False)


def of_recipe(name: str, arguments: str) -> bytes:
    head = f'{{"format": 1, "recipe": "{name}", "module": "semflow.recipes.{name}"'
    return f'{head}, "arguments": {arguments}}}'.encode()


CONFIGS = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "nested deeply": b"[" * 200_000,
    "too large": b'{"format": 1, "x": "' + b"y" * 2**20 + b'"}',
    "not in UTF-8": b'{"format": 1, "recipe": "\xff"}',
    "no format": b'{"recipe": "sanflow"}',
    "another format": b'{"format": 2}',
    "a format of letters": b'{"format": "one"}',
    "a recipe of a number": b'{"format": 1, "recipe": 3, "arguments": {}}',
    "no such recipe": b'{"format": 1, "recipe": "os.system", "arguments": {}}',
    "arguments a list": b'{"format": 1, "recipe": "sanflow", "arguments": [1]}',
    "no arguments": b'{"format": 1, "recipe": "sanflow"}',
    "an unknown argument": of_recipe("sanflow", '{"shell": "ls"}'),
    "a wrong argument": of_recipe("sanflow", '{"couplings": {"blocks": "many"}}'),
    "a negative argument": of_recipe("sanflow", '{"couplings": {"blocks": -1}}'),
    "a number that divides by zero": of_recipe("msflow", '{"image_size": 1, "backbone": "test_efficientnet"}'),
    "a number beyond every memory": of_recipe(
        "cflow_ad", '{"couplings": {"position_channels": 1000000000000}, "backbone": "test_efficientnet"}'
    ),
    "a backbone that is a path": of_recipe("sanflow", '{"backbone": "../../etc/passwd"}'),
    "a training that is a word": b'{"format": 1, "recipe": "sanflow", "arguments": {}, "training": "long"}',
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_load_rejects_damaged_configurations_in_one_line(kind, run, tmp_path) -> None:
    (tmp_path / MODEL).write_bytes((run / MODEL).read_bytes())
    (tmp_path / CONFIG).write_bytes(CONFIGS[kind])
    with pytest.raises(SemflowError) as caught:
        semflow.load(tmp_path)
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, CheckpointError)


def test_model_metadata_matches_the_configuration(run, detector) -> None:
    about, config = read_about(run / MODEL), read_config(run)
    assert about["format"] == 1
    assert about["recipe"] == "small"
    assert about["arguments"] == config["arguments"]
    assert about["training"] == config["training"]
    assert about["images"] == 4
    assert len(about["fingerprint"]) == 64
    assert about["versions"] == config["versions"]
    assert {"semflow", "python", "torch", "numpy"} <= about["versions"].keys()
    assert about["training"]["clip"] == 1e4


def test_fingerprint_depends_only_on_the_images(build, images, tmp_path) -> None:
    prints = []
    for number, (data, batch) in enumerate([(images, 4), (images, 3), (images[::-1], 4), (images[:9], 4)]):
        folder = tmp_path / str(number)
        fit(build(), data, epochs=1, batch_size=batch, output=folder, progress=False)
        prints.append(read_about(folder / MODEL)["fingerprint"])
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_calibrate_rejects_training_images(build, images, tmp_path) -> None:
    fit(build(), images, epochs=1, output=tmp_path, progress=False, calibration=9, false_alarm_rate=0.1)
    fingerprints = read_about(tmp_path / MODEL)["fingerprints"]
    seen, held_out = (list(part) for part in hold_out(images, 9))
    assert [len(x) for x in fingerprints] == [12] * len(seen)
    again = load_into(build(), tmp_path)
    for sample in seen:
        with pytest.raises(DataError, match=f"^{re.escape(sample.path)} must not be a training image"):
            calibrate(again, [*held_out, sample])
    assert again.calibration.count == 9  # as before
    calibrate(again, [*held_out, seen[0]._replace(image=seen[0].image * 0.999)])
    assert again.calibration.count == 10


def test_fit_rejects_calibration_on_training_images_before_training(build, images) -> None:
    steps = []
    counting = AfterEpoch(lambda *_: steps.append(1))
    options = {"epochs": 1, "progress": False, "false_alarm_rate": 0.5, "callbacks": [counting]}
    for calibration in (images, [images[3]], [images[0]._replace(path="other.png", image=images[5].image.clone())]):
        with pytest.raises(DataError, match="must not be a training image"):
            fit(build(), images, calibration=calibration, **options)
    assert not steps
    trained = fit(build(), images[:6], **{**options, "false_alarm_rate": None})
    assert len(steps) == 1
    with pytest.raises(DataError, match="must not be a training image"):  # by the first of both trainings
        fit(trained, images[6:], calibration=images[:2], **options)
    fit(trained, images[6:9], calibration=images[9:], **options)
    with pytest.raises(DataError, match="must not be a training image"):
        calibrate(trained, images[:2], 0.5)


def test_saving_again_keeps_the_metadata(run, detector, tmp_path) -> None:
    (tmp_path / MODEL).write_bytes((run / MODEL).read_bytes())
    save_model(detector, tmp_path)
    assert (tmp_path / MODEL).read_bytes() == (run / MODEL).read_bytes()
