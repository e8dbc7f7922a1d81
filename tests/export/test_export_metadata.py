import json
from dataclasses import asdict
from pathlib import Path

import pytest

from semflow.errors import CheckpointError
from semflow.export.metadata import EXPORT_FORMAT, Metadata, read_metadata, shareable

SAID = Metadata(
    recipe="sanflow",
    arguments={"blocks": 2, "strides": [8, 16]},
    image_size=64,
    input="uint8",
    map_range=(0.25, 3.0),
    localises=True,
    outputs=("score", "anomaly_map"),
    calibration={"images": 19},
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
    ],
)
def test_anything_else_is_an_error_that_names_the_file(text, words) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.onnx: ") as caught:
        read_metadata(text, PATH)
    assert words in str(caught.value)


def test_a_path_of_weights_stays_at_home() -> None:
    for path in ("/srv/models/a.pth", "..\\models\\a.pth", "a.pth"):
        assert shareable({"weights": path, "blocks": 2}) == {"weights": "a.pth", "blocks": 2}
    assert shareable({"weights": "hub"}) == {"weights": "hub"}
    assert shareable({}) == {}
