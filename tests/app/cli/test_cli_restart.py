"""Restarts of `semflow predict` after kills, interrupts and write errors."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers import loaded_process
from helpers.cli_cases import (
    hidden,
    interrupt_after,
    make_photos,
    only_line,
    picture,
    same_results,
    save,
    snapshot,
    words,
)
from semflow.app.cli import main
from semflow.errors import DataError
from semflow.files.resumable import resumable_folder

RUNS = 10


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(shared_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a command that is not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_photos(folder)
    assert main(words(shared_run, folder / "photos", folder / "results")) == 0
    return folder / "results"


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="a new process takes seconds")
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow) for seed in range(RUNS)])
def test_predict_continues_after_kills_at_random_moments(
    seed: int,
    shared_run: Path,
    photos: Path,
    uninterrupted: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Three times SIGKILL, after a random number of written files and a random delay."""
    output = tmp_path / "results"
    draw = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loaded_process"])
    kills = 0
    for killed in range(3):  # each later than the one before
        process = context.Process(target=loaded_process.run, args=(words(shared_run, photos, output),))
        process.start()
        enough = draw.randrange(8 * killed, 8 * killed + 8)
        while process.is_alive():
            written = sum(1 for path in tmp_path.glob(".results.partial/folder/*/*/*") if path.is_file())
            if written >= enough:
                time.sleep(draw.random() * 0.02)
                break
            time.sleep(0.005)
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert not output.exists() or (output / "scores.json").is_file()  # the folder is complete or missing
    assert kills > 0
    process = context.Process(target=loaded_process.run, args=(words(shared_run, photos, output),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert hidden(tmp_path) == []
    record_property("kills", kills)
    record_property("difference", same_results(output, uninterrupted))


@pytest.mark.parametrize(
    "change", ["nothing", "an image", "one image more", "one image less", "the model", "the format"]
)
def test_interrupted_predict_repeats_only_what_changed(
    change: str,
    shared_run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, output, whole = Path(shutil.copytree(shared_run, tmp_path / "run")), tmp_path / "results", tmp_path / "whole"
    with monkeypatch.context() as patched:
        interrupt_after(7, patched)
        assert main(words(run, photos, output)) == 130
    assert not output.exists()
    assert hidden(tmp_path) == [".results.partial"]
    more: list[str] = []
    rng = np.random.default_rng(9)
    if change == "an image":
        save(picture(rng), photos / "0" / "00.png")
    elif change == "one image more":
        save(picture(rng), photos / "0" / "000.png")
    elif change == "one image less":
        (photos / "0" / "00.png").unlink()
    elif change == "the model":
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "images": 99}))
    elif change == "the format":
        more = ["--map-format", "png16"]
    capsys.readouterr()
    assert main(words(run, photos, output, *more)) == 0
    shown = capsys.readouterr().out
    done = {"nothing": 7, "one image more": 7, "an image": 6, "one image less": 6}.get(change, 0)
    assert (f"{done} of " in shown) == bool(done)
    assert ("continuing" in shown) == bool(done)
    assert main(words(run, photos, whole, *more)) == 0
    same_results(output, whole)
    assert hidden(tmp_path) == []


def test_repeated_predict_reports_complete_output_and_changes_nothing(
    shared_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    assert main(words(shared_run, photos, output)) == 0
    before = snapshot(tmp_path)
    assert main(words(shared_run, photos, output)) == 0
    assert "already complete" in capsys.readouterr().out
    assert snapshot(tmp_path) == before
    save(picture(np.random.default_rng(5)), photos / "0" / "00.png")
    assert main(words(shared_run, photos, output)) == 2  # the images changed, and results are not overwritten
    assert "not empty" in capsys.readouterr().err.splitlines()[-1]


def test_image_that_breaks_during_scoring_is_skipped_or_stops(
    shared_run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from semflow.app.cli import predict

    write = predict.write_image

    def damage(*arguments: object) -> object:
        (photos / "2" / "11.png").write_bytes(b"not an image")
        return write(*arguments)  # type: ignore[arg-type]

    whole = (photos / "2" / "11.png").read_bytes()
    monkeypatch.setattr(predict, "write_image", damage)
    assert main(words(shared_run, photos, tmp_path / "a", "--on-error", "skip")) == 0
    content = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert [record["image"] for record in content["left_out"]] == ["2/11.png"]
    assert len(content["images"]) == 11
    assert "skipped '2/11.png'" in capsys.readouterr().err
    (photos / "2" / "11.png").write_bytes(whole)
    assert main(words(shared_run, photos, tmp_path / "b")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "11.png" in line
    assert not (tmp_path / "b").exists()
    monkeypatch.undo()
    (photos / "2" / "11.png").write_bytes(whole)
    assert main(words(shared_run, photos, tmp_path / "b")) == 0
    assert "continuing: 10 of 12 images are done" in capsys.readouterr().out
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("more", [[], ["--on-error", "skip"]])
@pytest.mark.parametrize("call", [0, 1, 9, 48, 50])
def test_full_disk_at_any_file_keeps_the_images_that_are_done(
    call: int,
    more: list[str],
    shared_run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = Path.write_bytes
    calls: list[Path] = []

    def full(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) > call:
            whole(self, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return whole(self, content)

    before = snapshot(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert main(words(shared_run, photos, tmp_path / "results", *more)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path}")
    assert "No space left on device; free some space" in line
    done = min(call // 4, 12)  # four files per image
    assert hidden(tmp_path) == ([".results.partial"] if done else [])
    assert {name: x for name, x in snapshot(tmp_path).items() if not name.startswith(".")} == before
    if done:
        assert main(words(shared_run, photos, tmp_path / "results", *more)) == 0
        assert f"continuing: {done} of 12 images are done" in capsys.readouterr().out
    assert hidden(tmp_path) == []


@pytest.fixture
def small_files(shared_run: Path, photos: Path) -> object:  # created before the limit is set
    """Let the system reject files of more than 3 kB, like a quota."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.usefixtures("small_files")
def test_file_size_limit_is_reported(
    shared_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(shared_run, photos, tmp_path / "results")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "must be writable, but got File too large" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize("error", [(28, "No space left on device"), (30, "Read-only file system")])
def test_evaluate_reports_metrics_that_cannot_be_written(
    error: tuple[int, str],
    shared_run: Path,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(self: Path, content: bytes) -> int:
        raise OSError(*error)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    file = tmp_path / "metrics.json"
    assert main(["evaluate", "--model", str(shared_run), "--data", str(shared_data), "--json", str(file)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {file} must be writable, but got {error[1]}")
    assert snapshot(tmp_path) == {}


def test_predict_rejects_a_read_only_output(
    shared_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and allowed(path, mode))
    assert main(words(shared_run, photos, tmp_path / "results")) == 2
    assert "no permission" in only_line(capsys)


def test_resumable_folder_rejects_a_second_writer(tmp_path: Path) -> None:
    with resumable_folder(tmp_path / "results", "a") as work:
        work.add("x", {}, [])
        with (
            pytest.raises(DataError, match="must not be in use"),
            resumable_folder(tmp_path / "results", "a"),
        ):
            pass
    assert (tmp_path / "results").is_dir()
    assert hidden(tmp_path) == []


def test_truncated_journal_loses_one_line(tmp_path: Path) -> None:
    def make(origin: str, found: dict[str, object]) -> None:
        with resumable_folder(tmp_path / "results", origin) as work:
            found.update(work.done)
            for key, name in (("x", "x.txt"), ("y", "y.txt"), ("\udcfc", "u.txt")):
                (work.folder / name).touch()
                work.add(key, {"n": 1}, [name])
            raise KeyboardInterrupt

    def begin(origin: str = "a") -> dict[str, object]:
        found: dict[str, object] = {}
        with pytest.raises(KeyboardInterrupt):
            make(origin, found)
        return found

    assert begin() == {}
    journal = tmp_path / ".results.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    assert begin() == {"x": {"n": 1}, "y": {"n": 1}}
    (tmp_path / ".results.partial" / "folder" / "x.txt").unlink()
    assert begin() == {"y": {"n": 1}, "\udcfc": {"n": 1}}
    journal.write_bytes(b"\x00invalid\n")
    assert begin() == {}
    assert begin("b") == {}  # another origin
