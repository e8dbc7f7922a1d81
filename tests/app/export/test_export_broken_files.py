"""Files that are not what they should be: each is one line that names it, and nothing in them is run."""

import contextlib
import html
import importlib
import io
import json
import pickle
import re
import shutil
import struct
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.export_cases import FORMATS, PACKAGES
from semflow.app.export import load, open_runner
from semflow.app.export.digest import DIGITS, ENDS
from semflow.app.export.metadata import EXPORT_FORMAT, KEY
from semflow.app.export.runtime import SUFFIXES
from semflow.errors import CheckpointError

ROOT = "archive"  # of the folder in an archive


@pytest.fixture
def copy(files, tmp_path):
    def make(name: str) -> Path:
        for file in files[name].parent.glob("own.*"):
            if file.suffix == SUFFIXES[name] or (name == "openvino" and file.suffix == ".bin"):
                shutil.copy(file, tmp_path)
        return tmp_path / files[name].name

    return make


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_empty_text_and_noise(name, copy) -> None:
    path = copy(name)
    data = path.read_bytes()
    noise = np.random.default_rng(0).bytes(1000)
    for content in (data[: len(data) // 2], data[:-100], b"", b"not a model", noise, json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        refused(path)


def test_openvino_without_its_weights(copy) -> None:
    pytest.importorskip("openvino")
    path = copy("openvino")
    path.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:100])
    refused(path)
    path.with_suffix(".bin").unlink()
    assert "expected own.bin beside it" in refused(path)


def test_models_of_others_and_of_other_versions(copy, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    path = copy("onnx")
    model = onnx.load(path)
    entry, digest = model.metadata_props
    assert (entry.key, digest.key) == (KEY, "semflow.sha256")
    del model.metadata_props[1:]
    entry.value = json.dumps({**json.loads(entry.value), "format": EXPORT_FORMAT + 1})
    onnx.save(model, path)
    assert f"expected export format {EXPORT_FORMAT} but got {EXPORT_FORMAT + 1}" in refused(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    assert "that semflow export has made" in refused(path)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    program.example_inputs = None
    torch.export.save(program, tmp_path / "other.pt2")
    assert "that semflow export has made" in refused(tmp_path / "other.pt2")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("onnx", {"input": "float32"}),
        ("onnx", {"image_size": 64}),
        ("onnx", {"outputs": ["score", "anomaly_map"], "calibration": {}}),
        ("torch", {"input": "float32"}),
        ("torch", {"image_size": 64}),
        ("torch", {"outputs": ["score", "anomaly_map"], "calibration": {}}),
        ("openvino", {"input": "float32"}),
        ("openvino", {"image_size": 64}),
        ("openvino", {"outputs": ["score", "anomaly_map"], "calibration": {}}),
    ],
)
def test_metadata_of_another_graph(name, changes, copy) -> None:
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    path = copy(name)
    said = load(path).metadata
    text = json.dumps({**asdict(said), **changes})
    if name == "onnx":
        model = importlib.import_module("onnx").load(path)
        model.metadata_props[0].value = text
        del model.metadata_props[1:]
        path.write_bytes(model.SerializeToString())
    elif name == "torch":
        rewritten(path, {"extra/semflow.json": text.encode()}, {})
    else:
        content = path.read_text()
        before = html.escape(said.to_json(), quote=True)
        assert content.count(before) == 1
        path.write_text(re.sub(r"<!-- semflow.*-->\n", "", content.replace(before, html.escape(text, quote=True))))
    assert "as its entry says, but it is of uint8 images (3, 32, 32) to score" in refused(path)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


def rewritten(path: Path, change: dict[str, bytes], more: dict[str, bytes]) -> None:
    """The archive with members replaced, by the ends of their names, and others added."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    root = members[0][0].partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, next((new for end, new in change.items() if name.endswith(end)), data))
        for name, data in more.items():
            archive.writestr(f"{root}/{name}", data)


def test_the_rewriting_of_this_test_leaves_a_good_archive(copy) -> None:
    path = copy("torch")
    rewritten(path, {}, {})
    assert load(path).provenance.image_size == 32


@pytest.mark.parametrize("where", ["inputs", "weights", "legacy", "compiled", "object", "doubled"])
def test_nothing_in_an_archive_is_unpickled_or_run(where, copy, tmp_path) -> None:
    path, trace = copy("torch"), tmp_path / "trace"
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb(trace)}, buffer)
    bomb = buffer.getvalue()
    change, more = {}, {}
    if where == "inputs":
        change = {"data/sample_inputs/model.pt": bomb}
    elif where == "weights":
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("model_weights_config.json"))
            config = json.loads(archive.read(name))
        first = next(iter(config["config"].values()))
        first["use_pickle"] = True
        change = {"model_weights_config.json": json.dumps(config).encode(), f"data/weights/{first['path_name']}": bomb}
    elif where == "legacy":
        more = {"data/weights/model.pt": bomb}
    elif where == "compiled":
        more = {"data/aotinductor/model/model.so": b"\x7fELF"}
    elif where == "object":
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("model_constants_config.json"))
            config = json.loads(archive.read(name))
        config["config"]["x"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": False,
            "tensor_meta": None,
        }
        change = {"model_constants_config.json": json.dumps(config).encode()}
        more = {"data/constants/opaque_obj_0": pickle.dumps(Bomb(trace))}
    else:
        more = {"data/sample_inputs/model.pt": b""}
    rewritten(path, change, more)
    refused(path)
    assert not trace.exists()


def pickled_weight(path: Path, trace: Path) -> tuple[str, bytes, bytes]:
    """The name of a weight, a configuration that calls it pickled, and what it is then."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read(f"{ROOT}/data/weights/model_weights_config.json"))
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb(trace)}, buffer)
    return first["path_name"], json.dumps(config).encode(), buffer.getvalue()


def test_a_name_in_another_case_is_the_same_name_to_torch(copy, tmp_path) -> None:
    path, trace = copy("torch"), tmp_path / "trace"
    weight, config, bomb = pickled_weight(path, trace)
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{ROOT}/data/weights/model_weights_CONFIG.json", config)
        archive.writestr(f"{ROOT}/data/weights/{weight.upper()}", bomb)
        for name, data in members:
            archive.writestr(name, bomb if name.endswith(f"/{weight}") else data)
    assert "model_weights_CONFIG.json, which semflow neither writes nor opens" in refused(path)
    assert not trace.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert trace.exists(), "torch reads it otherwise by now: this test tests nothing"


def ends(archive: bytes) -> tuple[bytes, bytes, bytes]:
    """The files of an archive, its directory and the record of its end."""
    end = archive.rindex(b"PK\5\6")
    size, offset = struct.unpack("<II", archive[end + 12 : end + 20])
    return archive[:offset], archive[offset : offset + size], archive[end:]


def shifted(directory: bytes, by: int) -> bytes:
    found, place = b"", 0
    while place < len(directory):
        lengths = sum(struct.unpack("<HHH", directory[place + 28 : place + 34]))
        (offset,) = struct.unpack("<I", directory[place + 42 : place + 46])
        entry = directory[place : place + 46 + lengths]
        found += entry[:42] + struct.pack("<I", (offset + by) % 2**32) + entry[46:]
        place += len(entry)
    return found


def test_an_archive_of_two_directories_is_read_as_torch_reads_it(copy, tmp_path) -> None:
    """Python goes by where a directory ends, torch by where it is said to begin."""
    path, trace = copy("torch"), tmp_path / "trace"
    weight, config, bomb = pickled_weight(path, trace)
    rewritten(path, {}, {})
    harmless = ends(path.read_bytes())
    rewritten(path, {"model_weights_config.json": config, f"data/weights/{weight}": bomb}, {})
    files, directory, end = ends(path.read_bytes())
    # Whoever goes back from the end takes every offset for counted from here.
    path.write_bytes(files + directory + harmless[0] + shifted(harmless[1], len(files) - len(harmless[0])) + end)
    with zipfile.ZipFile(path) as archive:
        assert b'"use_pickle": true' not in archive.read(f"{ROOT}/data/weights/model_weights_config.json")
    assert "pickled tensors" in refused(path)
    assert not trace.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert trace.exists(), "torch reads it otherwise by now: this test tests nothing"


@pytest.mark.parametrize("where", ["weight", "compressed", "second folder", "second model"])
def test_archives_that_semflow_has_not_written(where, copy) -> None:
    path = copy("torch")
    if where == "weight":
        content = path.read_bytes()
        weight = load(path).runner._module.state_dict()["detector.features.network.fine.weight"].numpy().tobytes()
        assert content.count(weight) == 1
        place = content.index(weight) + 10
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "data/weights/weight_0 has changed since it was written" in refused(path)
        return
    if where == "second model":
        rewritten(path, {}, {"models/other.json": b"{}"})
    else:
        with zipfile.ZipFile(
            path, "a", zipfile.ZIP_DEFLATED if where == "compressed" else zipfile.ZIP_STORED
        ) as archive:
            archive.writestr("other/extra/notes" if where == "second folder" else f"{ROOT}/extra/notes", b"0" * 1000)
    assert {"compressed": "compressed", "second folder": "more than one folder"}.get(where, "other.json") in refused(
        path
    )


def test_the_bomb_of_this_test_goes_off_where_it_is_unpickled(copy, tmp_path) -> None:
    """And torch.export.load does unpickle it: the refusal is not for nothing."""
    path, trace = copy("torch"), tmp_path / "trace"
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb(trace)}, buffer)
    rewritten(path, {"data/sample_inputs/model.pt": buffer.getvalue()}, {})
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert trace.exists()


@pytest.mark.parametrize(("name", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml"), ("openvino", ".bin")])
@given(data=st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bit_that_flips_is_found(name, suffix, copy, data) -> None:
    """In graph, weights or digest; a damaged mark of the digest leaves a file without one, and the right scores."""
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    path = copy(name)
    content = bytearray(path.with_suffix(suffix).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.with_suffix(suffix).write_bytes(content)
    mark = len(content) - place <= sum(map(len, ENDS[".onnx" if suffix == ".onnx" else ".xml"])) + DIGITS
    if suffix == ".bin" or not mark:
        assert "damaged" in refused(path)
    else:
        with contextlib.suppress(CheckpointError):
            load(path)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_file_without_a_digest_is_taken(name, copy) -> None:
    """As an optimiser writes it; and what is appended to a message or after a document changes nothing in it."""
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    path, images = copy(name), np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    sealed = open_runner(path)(images)
    length = sum(map(len, ENDS[path.suffix])) + DIGITS
    path.write_bytes(path.read_bytes()[:-length])
    for result, values in open_runner(path)(images).items():
        assert np.array_equal(values, sealed[result])


def test_a_run_directory_is_no_exported_file(tmp_path) -> None:
    (tmp_path / "run.onnx").mkdir()
    with pytest.raises(CheckpointError, match="but there is none"):
        open_runner(tmp_path / "run.onnx")
