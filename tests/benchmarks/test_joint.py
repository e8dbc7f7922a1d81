"""The comparison of one model for several categories with one for each."""

import json
from pathlib import Path

import pytest
from benchmarks import joint


def test_joint_memories_have_the_size_of_all_or_of_one(
    categories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(joint, "SIZE", 64)
    sizes = []
    evaluated = joint.evaluated

    def sized(detector, parts):
        sizes.append(len(detector.bases[0].vectors))
        return evaluated(detector, parts)

    monkeypatch.setattr(joint, "evaluated", sized)
    file = tmp_path / "joint.json"
    words = ["--data", str(categories), "--rows", "PatchCore", "--seeds", "0", "--json", str(file)]
    assert joint.main(words) == 0
    one = sizes[0]
    assert sizes == [one, one, 2 * one, one]
    found = json.loads(file.read_text())["results"]["PatchCore"]["0"]
    assert found["joint"].keys() == found["separate"].keys() == {"dark", "light"}
    before = capsys.readouterr().out.splitlines()[-5:]
    monkeypatch.setattr(joint, "measure", None)  # a finished cell is kept
    assert joint.main(words) == 0
    assert capsys.readouterr().out.splitlines() == before


def test_table_has_differences_by_seed() -> None:
    def cell(separate: float, together: float) -> dict:
        return {
            "separate": {"a": dict.fromkeys(joint.METRICS, separate), "b": dict.fromkeys(joint.METRICS, separate)},
            "seconds": {},
            "joint": {"a": dict.fromkeys(joint.METRICS, together), "b": dict.fromkeys(joint.METRICS, separate)},
        }

    lines = joint.table({"PaDiM": {"0": cell(0.9, 0.8), "1": cell(0.7, 0.6)}}).splitlines()
    assert lines[2] == "| PaDiM | separate | 80.0 ± 14.1 | 80.0 ± 14.1 | 80.0 ± 14.1 |"
    assert lines[3] == "| PaDiM | joint | -5.0 ± 0.0 | -5.0 ± 0.0 | -5.0 ± 0.0 |"
