import json
from dataclasses import asdict
from pathlib import Path

import pytest

from semflow.app.export.metadata import EXPORT_FORMAT, Metadata, read_metadata, shareable
from semflow.errors import CheckpointError

SAID = Metadata(
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


def test_what_is_written_is_read() -> None:
    assert read_metadata(SAID.to_json(), PATH) == SAID


def test_entries_of_a_later_writer_are_passed_over() -> None:
    assert read_metadata(json.dumps({**asdict(SAID), "colour": "blue"}), PATH) == SAID


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "that semflow export has made, but it has no entry 'semflow'"),
        ("", "broken"),
        ("[1]", "broken"),
        ("{}", "broken"),
        (json.dumps({"format": EXPORT_FORMAT}), "lacks values"),
        (
            json.dumps({**asdict(SAID), "format": EXPORT_FORMAT + 1}),
            "another version of semflow, expected export format",
        ),
        (json.dumps({**asdict(SAID), "image_size": 0}), "lacks values"),
        (json.dumps({**asdict(SAID), "image_size": "64"}), "lacks values"),
        (json.dumps({**asdict(SAID), "input": "float16"}), "lacks values"),
        (json.dumps({**asdict(SAID), "map_range": [1]}), "lacks values"),
        (json.dumps({**asdict(SAID), "outputs": None}), "lacks values"),
        (json.dumps({**asdict(SAID), "outputs": ["anomaly_map"]}), "lacks values"),
        ("[" * 100_000 + "]" * 100_000, "expected JSON"),
        ('{"format": 1, "recipe": "' + "x" * 2**20 + '"}', "expected JSON"),
        (json.dumps(asdict(SAID))[:-1] + ', "image_size": -7}', "lacks values"),
    ],
)
def test_anything_else_is_an_error_that_names_the_file(text, words) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.onnx: ") as caught:
        read_metadata(text, PATH)
    assert words in str(caught.value)


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
def test_values_of_other_types_are_an_error_and_no_crash_later(name, value) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.onnx: ") as caught:
        read_metadata(json.dumps({**asdict(SAID), name: value}), PATH)
    assert len(str(caught.value)) < 200


def test_a_path_of_weights_stays_at_home() -> None:
    for path in ("/srv/models/a.pth", "..\\models\\a.pth", "a.pth"):
        assert shareable({"weights": path, "blocks": 2}) == {"weights": "a.pth", "blocks": 2}
    assert shareable({"weights": "hub"}) == {"weights": "hub"}
    assert shareable({}) == {}
