"""`semflow predict --watch`: images that arrive, in real processes that are killed and stopped."""

import csv
import io
import json
import multiprocessing
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.cli_cases import picture, save, words
from helpers.watching import wait, watching
from semflow.app.cli import main

pytest.importorskip("watchfiles")
needs_fork = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="a new process takes seconds"
)
RNG = np.random.default_rng(4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(picture(RNG), tmp_path / "camera" / "first.png")
    return tmp_path / "camera"


@pytest.fixture(scope="module")
def calibrated(shared_run: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(shared_run, tmp_path_factory.mktemp("calibrated") / "run"))
    good = [*(shared_data / "test" / "good").iterdir()]
    others = tmp_path_factory.mktemp("others")
    for number in range(9 - len(good)):
        save(picture(RNG), others / f"{number}.png")
    for path in good:
        shutil.copy(path, others / f"good{path.name}")
    assert main(["calibrate", "--model", str(run), "--data", str(others), "--false-alarm-rate", "0.1"]) == 0
    return run


def command(run: Path, folder: Path, output: Path, *more: str) -> list[str]:
    return ["predict", "--model", str(run), "--watch", str(folder), "--output", str(output), "--device", "cpu", *more]


def encoded(suffix: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.fromarray(picture(RNG))]} if suffix == "TIFF" else {}
    Image.fromarray(picture(RNG)).save(buffer, suffix, **more)
    return buffer.getvalue()


@needs_fork
@pytest.mark.parametrize("polling", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_image_that_arrives_is_scored_once_and_whole(
    polling: bool, shared_run: Path, folder: Path, tmp_path: Path
) -> None:
    output = folder / "results"  # inside the folder that is watched
    with watching(command(shared_run, folder, output), output, polling=polling) as watched:
        watched.expect("first.png")
        slow = encoded("BMP")  # whose first half decodes as an error, and which has no check sum
        with (folder / "slow.bmp").open("wb") as file:
            for part in range(0, len(slow), len(slow) // 4 + 1):
                file.write(slow[part : part + len(slow) // 4 + 1])
                file.flush()
                time.sleep(0.2)
        (folder / "broken.png").write_bytes(encoded()[:-200])
        (folder / "renamed.png.part").write_bytes(encoded())
        (folder / ".hidden.png").write_bytes(encoded())
        (folder / "renamed.png.part").rename(folder / "renamed.png")
        save(picture(RNG), folder / "new" / "deep" / "sub.png")
        (folder / "video.mp4").write_bytes(b"frames")
        (folder / "notes.txt").write_text("no image")
        (folder / "pages.tif").write_bytes(encoded("TIFF"))
        watched.expect("slow.bmp", "broken.png", "renamed.png", "new/deep/sub.png", "video.mp4", "pages.tif")
        again = encoded()
        (folder / "broken.png").write_bytes(again)  # repaired
        (folder / "first.png").write_bytes(again)  # the camera uses the name again
        wait(lambda: len(watched.images()) == 9)
        assert watched.end() == 1  # the video and the second page
        lines, printed = watched.lines(), watched.printed()
        assert ".hidden.png" in watched.errors()
    with watching(command(shared_run, folder, output), output, polling=polling) as second:
        save(picture(RNG), folder / "late.png")
        second.expect("late.png")
        assert second.end() == 1  # they are still not read
    (folder / "late.png").unlink()
    assert printed == lines
    assert sorted(line["image"] for line in lines) == sorted(
        [
            "first.png",
            "slow.bmp",
            "broken.png",
            "renamed.png",
            "new/deep/sub.png",
            "video.mp4",
            "pages.tif",
            "broken.png",
            "first.png",
        ]
    )
    by_name = {line["image"]: line for line in lines}
    assert "intact image" in next(line["error"] for line in lines if line["image"] == "broken.png")
    assert "video" in by_name["video.mp4"]["error"]
    assert "pages after the first" in by_name["pages.tif"]["warning"]
    assert "warning" not in by_name["renamed.png"]
    same = {line["score"] for line in lines[-2:]}
    assert len(same) == 1
    for line in lines:
        for kind in ("overlay", "map"):
            assert "error" in line or (output / line[kind]).is_file()
    assert len({line["overlay"] for line in lines if "error" not in line}) == 7
    # the scores are those of predict without --watch
    shutil.rmtree(output)
    for name in ("video.mp4", ".hidden.png"):
        (folder / name).unlink()
    assert main(words(shared_run, folder, tmp_path / "whole")) == 1  # the second page
    with (tmp_path / "whole" / "scores.csv").open() as file:
        scores = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    found = {name: line["score"] for name, line in by_name.items() if "error" not in line}
    assert found == pytest.approx(scores, rel=1e-5)


@needs_fork
def test_killed_watch_continues_without_losing_or_repeating_an_image(
    calibrated: Path, folder: Path, tmp_path: Path
) -> None:
    output, done = tmp_path / "results", tmp_path / "done"
    again = command(calibrated, folder, output, "--move-to", str(done), "--batch-size", "2")
    total = 1
    for kill in range(2):
        with watching(again, output) as watched:
            before = len(watched.lines())
            for number in range(6):
                save(picture(RNG), folder / f"{kill}-{number}.png")
            total += 6
            wait(lambda: len(watched.lines()) >= before + 2 + kill)  # noqa: B023
            watched.end(signal.SIGKILL)
    log = output / "scores.jsonl"
    last = watched.lines()[-1]
    moved = Path(last["moved_to"])
    wait(moved.exists) if not (folder / last["image"]).exists() else None
    if moved.exists():
        shutil.move(moved, folder / last["image"])  # as if it had been killed before the move
    with log.open("a") as file:
        file.write('{"image": "0-')  # or in the middle of a line
    (folder / "broken.png").write_bytes(b"no image")
    save(picture(RNG), done / "good" / "later.png")
    theirs = (done / "good" / "later.png").read_bytes()
    save(picture(RNG), done / "anomalous" / "later.png")
    save(picture(RNG), folder / "later.png")
    with watching(again, output) as watched:
        wait(lambda: len(watched.lines()) == total + 2 and not any(folder.glob("*.*")))
        assert watched.end(signal.SIGINT) == 1  # broken.png
        lines = watched.lines()
    assert len({line["image"] for line in lines}) == len(lines) == total + 2
    assert {Path(line["moved_to"]) for line in lines} | {done / "good/later.png", done / "anomalous/later.png"} == {
        path for path in done.rglob("*") if path.is_file()
    }
    for line in lines:
        kind = "unreadable" if "error" in line else "anomalous" if line["is_anomalous"] else "good"
        assert Path(line["moved_to"]).parent == done / kind
    assert (done / "good" / "later.png").read_bytes() == theirs
    assert Path(lines[-1]["moved_to"]).name in ("later-2.png", "broken.png")


@needs_fork
def test_watch_goes_on_without_a_reader_and_refuses_a_second_one(
    shared_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    with watching(command(shared_run, folder, output), output, reader=False) as watched:
        watched.expect("first.png")
        save(picture(RNG), folder / "second.png")
        watched.expect("second.png")
        assert main(command(shared_run, folder, output)) == 2
        assert "another process" in capsys.readouterr().err
        assert watched.end() == 0
    assert main(command(shared_run, tmp_path, output)) == 2
    assert "model, rate, category and folder" in capsys.readouterr().err


def test_mistakes_are_named(
    shared_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results"
    for wrong, part in (
        (command(shared_run, tmp_path / "none", output), "--watch must be a folder"),
        (command(shared_run, folder, output, "--input", str(folder)), "--input must be left out"),
        (command(shared_run, folder, folder), "--output must not hold"),
        (command(shared_run, folder, tmp_path), "--output must not hold"),
        (command(shared_run, folder, output, "--move-to", str(folder)), "--move-to must be another"),
        (["predict", "--model", str(shared_run), "--output", str(output)], "--input must be"),
        ([*words(shared_run, folder, output), "--move-to", str(tmp_path)], "--move-to must be left out"),
    ):
        assert main(wrong) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert part in line, line
        assert not output.exists()
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    assert main(command(shared_run, folder, output)) == 2
    assert capsys.readouterr().err.endswith('; run pip install "semflow[watch]"\n')
    assert json.dumps([*tmp_path.iterdir()], default=str) == json.dumps([folder], default=str)
