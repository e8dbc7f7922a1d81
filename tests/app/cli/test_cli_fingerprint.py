"""Fingerprint by which a restarted command recognizes its model."""

import shutil
from pathlib import Path

import pytest

from helpers.cli_cases import hidden, interrupt_after, make_photos, same_results, words
from semflow.app.cli import main
from semflow.app.cli.inputs import fingerprint


@pytest.mark.parametrize("name", ["a.pt2", "a.onnx", "a.xml", ".hidden.onnx", "log.jsonl"])
def test_fingerprint_of_a_file_depends_on_content_only(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(b"one")
    first = fingerprint(file)
    file.write_bytes(b"two")
    assert fingerprint(file) != first
    moved = tmp_path / "elsewhere" / f"other{file.suffix}"
    moved.parent.mkdir()
    moved.write_bytes(b"one")
    assert fingerprint(moved) == first


def test_fingerprint_includes_the_bin_file_of_openvino_only(tmp_path: Path) -> None:
    found = {}
    for suffix in (".xml", ".onnx"):
        (tmp_path / f"a{suffix}").write_bytes(b"graph")
        for weights in (b"one", b"two", b"tw"):
            (tmp_path / "a.bin").write_bytes(weights)
            found[suffix, weights] = fingerprint(tmp_path / f"a{suffix}")
    assert len({found[".xml", weights] for weights in (b"one", b"two", b"tw")}) == 3
    assert len({found[".onnx", weights] for weights in (b"one", b"two", b"tw")}) == 1


def test_fingerprint_of_a_run_covers_config_and_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "model.safetensors", "log.jsonl"):
        (run / name).write_text(name)
    first = fingerprint(run)
    (run / "log.jsonl").write_text("another")
    (run / ".results.partial").mkdir()
    (run / ".results.partial" / "map.npy").write_text("made of it")
    assert fingerprint(run) == first
    assert fingerprint(run.rename(tmp_path / "renamed")) == first
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "renamed" / name).write_text("another")
        assert fingerprint(tmp_path / "renamed") != first
        (tmp_path / "renamed" / name).write_text(name)


def test_predict_into_the_run_directory_continues(
    shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = Path(shutil.copytree(shared_run, tmp_path / "run")), make_photos(tmp_path)
    with monkeypatch.context() as patched:
        interrupt_after(7, patched)
        assert main(words(run, photos, run / "results")) == 130
    assert hidden(run) == [".results.partial"]
    capsys.readouterr()
    assert main(words(run, photos, run / "results")) == 0
    assert "continuing: 7 of 12 images are done" in capsys.readouterr().out
    assert main(words(run, photos, run / "results")) == 0
    assert "already complete" in capsys.readouterr().out
    assert main(words(shared_run, photos, tmp_path / "whole")) == 0
    same_results(run / "results", tmp_path / "whole")
