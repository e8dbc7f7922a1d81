import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from semflow.app.export.exported import ExportedDetector
from semflow.app.export.metadata import EXPORT_FORMAT, Metadata, read_metadata, shareable
from semflow.errors import CheckpointError

ABOUT = Metadata(
    recipe="sanflow",
    arguments={"blocks": 2, "strides": [8, 16]},
    image_size=64,
    input="uint8",
    map_range=(0.25, 3.0),
    localizes=True,
    outputs=("score", "anomaly_map", "p_value", "is_anomalous", "mask"),
    calibration={"images": 19, "false_alarm_rate": 0.05},
    versions={"semflow": "0.1.0"},
)
PATH = Path("a.onnx")


def test_metadata_round_trip() -> None:
    assert read_metadata(ABOUT.to_json(), PATH) == ABOUT


def test_unknown_entries_are_ignored() -> None:
    assert read_metadata(json.dumps({**asdict(ABOUT), "color": "blue"}), PATH) == ABOUT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be written by semflow export, but got no entry 'semflow'"),
        ("", "valid metadata"),
        ("[1]", "valid metadata"),
        ("{}", "valid metadata"),
        (json.dumps({"format": EXPORT_FORMAT}), "valid metadata"),
        (
            json.dumps({**asdict(ABOUT), "format": EXPORT_FORMAT + 1}),
            f"must have export format {EXPORT_FORMAT}, but got {EXPORT_FORMAT + 1}",
        ),
        (json.dumps({**asdict(ABOUT), "image_size": 0}), "valid metadata"),
        (json.dumps({**asdict(ABOUT), "image_size": "64"}), "valid metadata"),
        (json.dumps({**asdict(ABOUT), "calibration": {"images": "9", "false_alarm_rate": 0.1}}), "valid metadata"),
        (json.dumps({**asdict(ABOUT), "input": "float16"}), "valid metadata"),
        (json.dumps({**asdict(ABOUT), "map_range": [1]}), "valid metadata"),
        (json.dumps({**asdict(ABOUT), "outputs": None}), "valid metadata"),
        (json.dumps({**asdict(ABOUT), "outputs": ["anomaly_map"]}), "valid metadata"),
        ("[" * 100_000 + "]" * 100_000, "valid metadata"),
        ('{"format": 1, "recipe": "' + "x" * 2**20 + '"}', "valid metadata"),
        (json.dumps(asdict(ABOUT))[:-1] + ', "image_size": -7}', "valid metadata"),
    ],
)
def test_invalid_metadata_is_rejected(text, message) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.onnx must ") as caught:
        read_metadata(text, PATH)
    assert message in str(caught.value)


WRONG = {
    "format": [True, 1.0],
    "image_size": [True, 64.0, 10**30, float("nan"), float("inf"), [64], None, 0],
    "map_range": [[0, 10**400], [float("nan"), 1], [0, float("inf")], [1, 0], ["0", "1"], [True, False], "ab", {}],
    "outputs": [["score"], ["score", "score", "anomaly_map"], "score", {"score": 1}, [1, "score"], [["score"]]],
    "calibration": [None, [], "x", {"images": 9}, {}]
    + [{"false_alarm_rate": rate} for rate in ("0.1", float("nan"), 10**400, [0.1], 0, 1.0, True, None)],
    "localizes": [None, "no", 1],
    "recipe": [None, 3, ["sanflow"]],
    "arguments": [None, []],
    "versions": [None, "1"],
    "input": [None, 3, ["uint8"], "int8"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_values_of_other_types_are_rejected(name, value) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.onnx must ") as caught:
        read_metadata(json.dumps({**asdict(ABOUT), name: value}), PATH)
    assert len(str(caught.value)) < 200


def test_shareable_removes_the_folder_of_weights() -> None:
    for path in ("/srv/models/a.pth", "..\\models\\a.pth", "a.pth"):
        backbone = {"name": "resnet18", "weights": path}
        expected = {"backbone": {"name": "resnet18", "weights": "a.pth"}, "seed": 2}
        assert shareable({"backbone": backbone, "seed": 2}) == expected
    for arguments in ({"backbone": {"name": "resnet18", "weights": "hub"}}, {"backbone": {"module": "a.B"}}, {}):
        assert shareable(arguments) == arguments


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        ({}, ("", 0, None)),
        ({"images": 19, "false_alarm_rate": 0.05}, ("", 19, 0.05)),  # of an earlier version
        ({"images": 48, "false_alarm_rate": 0.021, "cross": True}, ("cross", 48, 0.021)),
    ],
)
def test_exported_detector_says_how_it_was_calibrated(calibration, expected) -> None:
    exported = ExportedDetector(SimpleNamespace(metadata=replace(ABOUT, calibration=calibration)))
    found = exported.provenance.calibration, exported.calibration_images, exported.false_alarm_rate
    assert found == expected
