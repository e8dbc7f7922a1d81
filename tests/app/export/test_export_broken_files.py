"""Broken and forged files: each is one error that names the file, and nothing in them is executed."""

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

ROOT = "archive"  # folder in an archive


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
    assert text.startswith(str(path.with_suffix("")))
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_empty_and_random_files_are_rejected(name, copy) -> None:
    path = copy(name)
    data = path.read_bytes()
    noise = np.random.default_rng(0).bytes(1000)
    for content in (data[: len(data) // 2], data[:-100], b"", b"not a model", noise, json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        refused(path)


def test_openvino_without_weights_is_rejected(copy) -> None:
    pytest.importorskip("openvino")
    path = copy("openvino")
    path.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:100])
    refused(path)
    path.with_suffix(".bin").unlink()
    assert "own.bin must have the weights of own.xml, but got no file" in refused(path)


def test_openvino_graph_that_compiles_for_a_single_image_only_is_rejected(copy, monkeypatch) -> None:
    pytest.importorskip("openvino")
    path = copy("openvino")
    runner = open_runner(path)
    images = np.zeros((2, *runner.metadata.shape), runner.metadata.input)

    def fail() -> None:
        raise RuntimeError("Exception from src/plugin.cpp:1\nno kernel for a free batch")

    monkeypatch.setattr(runner, "_compile", fail)
    runner(images[:1])
    with pytest.raises(CheckpointError, match=r"own\.xml must be an exported model, but got .*no kernel"):
        runner(images)
    monkeypatch.undo()
    assert len(runner(images)["score"]) == 2


def test_files_of_other_programs_and_versions_are_rejected(copy, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    path = copy("onnx")
    model = onnx.load(path)
    entry, digest = model.metadata_props
    assert (entry.key, digest.key) == (KEY, "semflow.sha256")
    del model.metadata_props[1:]
    entry.value = json.dumps({**json.loads(entry.value), "format": EXPORT_FORMAT + 1})
    onnx.save(model, path)
    assert f"must have export format {EXPORT_FORMAT}, but got {EXPORT_FORMAT + 1}" in refused(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    assert "must be written by semflow export" in refused(path)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    program.example_inputs = None
    torch.export.save(program, tmp_path / "other.pt2")
    assert "must be written by semflow export" in refused(tmp_path / "other.pt2")


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
def test_metadata_of_another_graph_is_rejected(name, changes, copy) -> None:
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    path = copy(name)
    about = load(path).metadata
    text = json.dumps({**asdict(about), **changes})
    if name == "onnx":
        model = importlib.import_module("onnx").load(path)
        model.metadata_props[0].value = text
        del model.metadata_props[1:]
        path.write_bytes(model.SerializeToString())
    elif name == "torch":
        rewritten(path, {"extra/semflow.json": text.encode()}, {})
    else:
        content = path.read_text()
        before = html.escape(about.to_json(), quote=True)
        assert content.count(before) == 1
        path.write_text(re.sub(r"<!-- semflow.*-->\n", "", content.replace(before, html.escape(text, quote=True))))
    assert "but got inputs ('uint8', 3, 32, 32) and results score, anomaly_map" in refused(path)


class Bomb:
    """Object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


def rewritten(path: Path, change: dict[str, bytes], more: dict[str, bytes]) -> None:
    """Replace members of an archive, by the ends of their names, and add others."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    root = members[0][0].partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, next((new for end, new in change.items() if name.endswith(end)), data))
        for name, data in more.items():
            archive.writestr(f"{root}/{name}", data)


def test_rewritten_archive_is_accepted(copy) -> None:
    path = copy("torch")
    rewritten(path, {}, {})
    assert load(path).provenance.image_size == 32


@pytest.mark.parametrize("where", ["inputs", "weights", "legacy", "compiled", "object", "doubled"])
def test_nothing_in_an_archive_is_unpickled_or_executed(where, copy, tmp_path) -> None:
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
    """Return the name of a weight, a configuration that declares it pickled, and its pickled content."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read(f"{ROOT}/data/weights/model_weights_config.json"))
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb(trace)}, buffer)
    return first["path_name"], json.dumps(config).encode(), buffer.getvalue()


def test_names_that_differ_in_case_are_rejected(copy, tmp_path) -> None:
    path, trace = copy("torch"), tmp_path / "trace"
    weight, config, bomb = pickled_weight(path, trace)
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        # torch searches by halves, without case, and takes the first record that it meets.
        for name in ("CONFIG", "Config", "cOnfig", "coNfig", "conFig", "confIg", "confiG"):
            archive.writestr(f"{ROOT}/data/weights/model_weights_{name}.json", config)
        archive.writestr(f"{ROOT}/data/weights/{weight.upper()}", bomb)
        for name, data in members:
            archive.writestr(name, bomb if name.endswith(f"/{weight}") else data)
    assert "only records that semflow writes, but got archive/data/weights/model_weights_CONFIG.json" in refused(path)
    assert not trace.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert trace.exists(), "torch opens this archive differently: adapt the test"


def ends(archive: bytes) -> tuple[bytes, bytes, bytes]:
    """Split an archive into its files, its directory and its end record."""
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


def test_archive_with_two_directories_is_rejected(copy, tmp_path) -> None:
    """Python locates the directory by its end, torch by its recorded start."""
    path, trace = copy("torch"), tmp_path / "trace"
    weight, config, bomb = pickled_weight(path, trace)
    rewritten(path, {}, {})
    harmless = ends(path.read_bytes())
    rewritten(path, {"model_weights_config.json": config, f"data/weights/{weight}": bomb}, {})
    files, directory, end = ends(path.read_bytes())
    # A reader that locates it by its end counts every offset from here.
    path.write_bytes(files + directory + harmless[0] + shifted(harmless[1], len(files) - len(harmless[0])) + end)
    with zipfile.ZipFile(path) as archive:
        assert b'"use_pickle": true' not in archive.read(f"{ROOT}/data/weights/model_weights_config.json")
    assert "model_weights_config.json for all zip readers" in refused(path)
    assert not trace.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert trace.exists(), "torch opens this archive differently: adapt the test"


@pytest.mark.parametrize("where", ["weight", "compressed", "second folder", "second model"])
def test_other_archives_are_rejected(where, copy) -> None:
    path = copy("torch")
    if where == "weight":
        content = path.read_bytes()
        weight = load(path).runner._module.state_dict()["detector.features.network.fine.weight"].numpy().tobytes()
        assert content.count(weight) == 1
        place = content.index(weight) + 10
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "must have its checksums" in refused(path)
        return
    if where == "second model":
        rewritten(path, {}, {"models/other.json": b"{}"})
    else:
        with zipfile.ZipFile(
            path, "a", zipfile.ZIP_DEFLATED if where == "compressed" else zipfile.ZIP_STORED
        ) as archive:
            archive.writestr("other/extra/notes" if where == "second folder" else f"{ROOT}/extra/notes", b"0" * 1000)
    assert {"compressed": "compressed", "second folder": "one folder, but got more"}.get(
        where, "other.json"
    ) in refused(path)


def test_torch_unpickles_inputs_of_an_archive(copy, tmp_path) -> None:
    """The other tests need this behavior of torch.export.load."""
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
def test_flipped_bit_is_detected(name, suffix, copy, data) -> None:
    """A damaged marker of the digest leaves a valid file without a digest."""
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    path = copy(name)
    content = bytearray(path.with_suffix(suffix).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.with_suffix(suffix).write_bytes(content)
    mark = len(content) - place <= sum(map(len, ENDS[".onnx" if suffix == ".onnx" else ".xml"])) + DIGITS
    if suffix == ".bin" or not mark:
        assert "must match its digest" in refused(path)
    else:
        with contextlib.suppress(CheckpointError):
            load(path)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_file_without_a_digest_is_accepted(name, copy) -> None:
    """Optimizers of other programs write such files."""
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    path, images = copy(name), np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    expected = open_runner(path)(images)
    length = sum(map(len, ENDS[path.suffix])) + DIGITS
    path.write_bytes(path.read_bytes()[:-length])
    for result, values in open_runner(path)(images).items():
        assert np.array_equal(values, expected[result])


def test_folder_is_no_exported_file(tmp_path) -> None:
    (tmp_path / "run.onnx").mkdir()
    with pytest.raises(CheckpointError, match="but got no file"):
        open_runner(tmp_path / "run.onnx")
