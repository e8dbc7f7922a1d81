"""The file of finished cells."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.shared.store import CellStore, Key

ROOT = Path(__file__).resolve().parents[2]
KEY = Key("SANFlow", "screw", 0)
SETTINGS = {"fit": {"epochs": 3}, "strides": (8, 16)}
RESULT = {"metrics": {"image_auroc": 0.75, "aupro": None}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "cells.jsonl"


def test_find_returns_an_appended_cell(path: Path) -> None:
    store = CellStore(path, notice=pytest.fail)
    assert store.find(KEY, SETTINGS) is None
    store.append(KEY, SETTINGS, RESULT, {"command": "x"})
    kept = store.find(KEY, SETTINGS)
    assert kept is not None
    assert (kept["result"], kept["record"]) == (RESULT, {"command": "x"})
    assert kept["settings"] == {"fit": {"epochs": 3}, "strides": [8, 16]}
    assert store.find(KEY._replace(seed=1), SETTINGS) is None
    assert [p.name for p in path.parent.iterdir()] == ["cells.jsonl"]


def test_find_reports_changed_settings_once(path: Path) -> None:
    notices: list[str] = []
    store = CellStore(path, notice=notices.append)
    store.append(KEY, SETTINGS, RESULT, {})
    changed = {**SETTINGS, "fit": {"epochs": 4}}
    assert store.find(KEY, changed) is None
    assert store.find(KEY, changed) is None
    assert notices == [
        "SANFlow, screw, seed 0: not reused, because its settings changed (fit {'epochs': 3} -> {'epochs': 4})"
    ]


def test_find_ignores_kept_settings_that_are_not_asked_for(path: Path) -> None:
    store = CellStore(path, notice=pytest.fail)
    store.append(KEY, {**SETTINGS, "old": 1}, RESULT, {})
    assert store.find(KEY, SETTINGS) is not None


def test_cells_of_other_settings_are_kept(path: Path) -> None:
    store = CellStore(path, notice=pytest.fail)
    for epochs, auroc in ((3, 0.5), (4, 0.6), (3, 0.7)):
        store.append(KEY, {"epochs": epochs}, {"metrics": {"image_auroc": auroc}}, {})
    found = {epochs: store.find(KEY, {"epochs": epochs})["result"]["metrics"]["image_auroc"] for epochs in (3, 4)}  # type: ignore[index]
    assert found == {3: 0.7, 4: 0.6}
    assert store.latest()[KEY]["result"]["metrics"]["image_auroc"] == 0.7


def test_incomplete_line_is_skipped_and_the_next_cell_is_not_lost(path: Path) -> None:
    CellStore(path).append(KEY, SETTINGS, RESULT, {})
    line = path.read_bytes()
    for length in range(1, len(line), 7):  # a process that was killed while it wrote
        path.write_bytes(line + line[:length])
        notices: list[str] = []
        store = CellStore(path, notice=notices.append)
        assert len(store.read()[KEY]) == 1
        (notice,) = notices
        assert "skipped line 2" in notice
        assert "\n" not in notice
        store.append(KEY, SETTINGS, RESULT, {})
        assert len(store.read()[KEY]) == 2


@pytest.mark.parametrize(
    "change",
    [{"seed": "0"}, {"settings": None}, {"result": {}}, {"result": {"metrics": {"aupro": "x"}}}, {"record": None}],
    ids=str,
)
def test_line_that_is_not_a_cell_is_skipped(path: Path, change: dict[str, object]) -> None:
    CellStore(path).append(KEY, SETTINGS, RESULT, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + '\n[]\nnull\n{"row": NaN}\n')
    notices: list[str] = []
    assert CellStore(path, notice=notices.append).read() == {}
    assert len(notices) == 4


def test_append_rejects_nan(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        CellStore(path).append(KEY, {}, {"metrics": {"image_auroc": float("nan")}}, {})
    assert not path.exists()


def test_processes_append_at_the_same_time(path: Path) -> None:
    code = (
        "import sys; from benchmarks.shared.store import CellStore, Key\n"
        "for seed in range(50):\n"
        "    key = Key(sys.argv[2], 'screw', seed)\n"
        "    CellStore(sys.argv[1]).append(key, {'text': 'x' * 20000}, {'metrics': {'aupro': 0.5}}, {})\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, path, row], cwd=ROOT) for row in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(CellStore(path, notice=pytest.fail).read()) == 150
