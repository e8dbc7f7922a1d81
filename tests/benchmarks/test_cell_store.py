"""A cell is kept under all that it depends on, whole or not at all."""

import json
from pathlib import Path

import pytest
from benchmarks.shared.store import CellStore, digest
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = st.sampled_from(["recipe", "seed", "fit", "blocks", "β"])
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-1, 1) | st.text(max_size=3)
CONFIGS = st.dictionaries(NAMES, LEAVES | st.dictionaries(NAMES, LEAVES, max_size=3), min_size=1, max_size=4)
CONFIG = {"recipe": "sanflow", "arguments": {"blocks": 8, "strides": [8, 16]}, "seed": 0}
RESULT = {"metrics": {"image_auroc": 0.75, "aupro": None}}


def reversed_keys(value: object) -> object:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(list(value))}
    return value


@settings(max_examples=30)
@given(CONFIGS)
def test_the_hash_ignores_the_order_of_keys(config: dict[str, object]) -> None:
    assert digest(config) == digest(reversed_keys(config))
    assert digest(config) == digest(json.loads(json.dumps(config)))


@settings(max_examples=30)
@given(CONFIGS, CONFIGS)
def test_the_hash_tells_configurations_apart(a: dict[str, object], b: dict[str, object]) -> None:
    assert (digest(a) == digest(b)) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    """Kept cells would be lost otherwise; the truth is sha256sum of the canonical text."""
    assert digest({"b": 1, "a": (1, 2)}) == digest({"a": [1, 2], "b": 1})
    # printf '{"a":[1,2],"b":1}' | sha256sum
    assert digest({"a": [1, 2], "b": 1}) == "94a786c3662bc7be"


def test_a_cell_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells", notice=pytest.fail)
    assert store.get(CONFIG) is None
    path = store.put(CONFIG, RESULT, {"command": "x"})
    kept = store.get(CONFIG)
    assert kept is not None
    assert (kept["config"], kept["result"], kept["record"]) == (CONFIG, RESULT, {"command": "x"})
    assert [p.name for p in path.parent.iterdir()] == [f"{digest(CONFIG)}.json"]
    assert store.get({**CONFIG, "seed": 1}) is None


def test_a_broken_file_is_reported_and_counts_as_missing(tmp_path: Path) -> None:
    notices: list[str] = []
    store = CellStore(tmp_path, notice=notices.append)
    path = store.put(CONFIG, RESULT, {})
    text = path.read_text()
    broken = [text[:n] for n in range(0, len(text) - 2, 7)]  # a write that was cut off anywhere
    good = json.loads(text)
    changes = (
        {"format": 0},
        {"config": {**CONFIG, "seed": 1}},
        {"result": {}},
        {"result": {"metrics": {"aupro": "x"}}},
        {"record": None},
    )
    broken += [json.dumps({**good, **change}) for change in changes]
    broken += ["[]", "null", text.replace("0.75", "NaN")]
    for content in broken:
        path.write_text(content)
        notices.clear()
        assert store.get(CONFIG) is None, content
        (notice,) = notices
        assert str(path) in notice
        assert "\n" not in notice
    path.write_bytes(b"\xff\xfe\x00")
    assert store.get(CONFIG) is None
    store.put(CONFIG, RESULT, {})
    assert store.get(CONFIG) is not None


def test_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        CellStore(tmp_path).put(CONFIG, {"metrics": {"image_auroc": float("nan")}}, {})
    assert not list(tmp_path.iterdir())
