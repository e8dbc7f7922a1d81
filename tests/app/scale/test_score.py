"""`semflow score` on a local Ray: same rows as `predict`, also after kills."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.dying_model import load_dying, load_full
from helpers.scale_cases import OFF, SIZE, files, make_images, score_words
from semflow.app.cli import main
from semflow.app.cli.console import decided
from semflow.app.cli.inputs import fingerprint
from semflow.app.scale import BlockStore, Workers, connected, read_listing, score_blocks
from semflow.app.scale.blocks import commit_block
from semflow.detectors import DriftTest
from semflow.errors import CheckpointError, DataError, ProcessError

pytest.importorskip("ray", reason="needs Ray, the extra ray")
parquet: Any = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra ray")


@pytest.fixture(scope="module")
def here() -> Iterator[Any]:
    """Ray, started once for the tests that do not kill it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFF.items():
            patch.setenv(name, value)
        with connected(3) as ray:
            yield ray


def read(output: Path) -> dict[str, dict[str, Any]]:
    """Return the rows by path, and check that each occurs once."""
    rows = parquet.read_table(output / "blocks").to_pylist()
    found = {row.pop("path"): row for row in rows}
    assert len(found) == len(rows)
    return found


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("scoring blocks")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images") / "photos", 21, seed=1)


@pytest.fixture(scope="module")
def predicted(tiny_run: Path, photos: Path) -> dict[str, dict[str, str]]:
    output = photos.parent / "predicted"
    words = ["--model", str(tiny_run), "--input", str(photos), "--output", str(output), "--device", "cpu"]
    assert main(["predict", *words, "--batch-size", "5"]) == 0
    with (output / "scores.csv").open(newline="") as table:
        return {row["image"]: row for row in csv.DictReader(table)}


def same_rows(output: Path, predicted: dict[str, dict[str, str]]) -> None:
    found = read(output)
    assert found.keys() == predicted.keys()
    for name, row in predicted.items():
        assert found[name]["score"] == pytest.approx(float(row["score"]), rel=1e-5)
        assert found[name]["p_value"] == float(row["p_value"])
        assert found[name]["is_anomalous"] == (row["is_anomalous"] == "True")
        assert found[name]["error"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_rows_equal_those_of_predict(
    tiny_run: Path,
    photos: Path,
    predicted: dict[str, dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = score_words(tiny_run, photos, tmp_path / "out", "--workers", "2", "--block-size", "2")
    words += ["--drift", str(tmp_path / "parts.drift")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    same_rows(tmp_path / "out", predicted)
    passed = sum(row["is_anomalous"] == "False" for row in predicted.values())
    assert f"no sign of drift in {passed} images that passed as good" in printed
    assert len(files(tmp_path / "out")) == 11
    highest = max(predicted.values(), key=lambda row: float(row["score"]))
    assert f"scored 21 images; the most anomalous is {highest['image']} ({float(highest['score']):.4f})" in printed
    assert decided(sum(row["is_anomalous"] == "True" for row in predicted.values()), 21, 0.1) in printed
    before = files(tmp_path / "out")
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "already complete" in printed
    assert f"no sign of drift in {passed} images" in printed  # each counts once
    assert files(tmp_path / "out") == before


def test_committed_rows_are_tested_for_drift_once(
    tiny_run: Path,
    photos: Path,
    predicted: dict[str, dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All blocks are complete, so that Ray does not start."""
    about = {"--model": fingerprint(tiny_run), "--false-alarm-rate": 0.1}
    store = BlockStore(tmp_path / "out", read_listing(photos), 4, about)
    store.open()
    for block in store:
        rows = [predicted[name] for name in block.names]
        columns = {name: [float(row[name]) for row in rows] for name in ("score", "p_value")}
        decided = {"is_anomalous": [row["is_anomalous"] == "True" for row in rows], "error": [""] * len(rows)}
        commit_block(store.folder / "blocks", block, {**columns, **decided})
    words = score_words(tiny_run, photos, tmp_path / "out", "--block-size", "4", "--drift", str(tmp_path / "a.drift"))
    passed = sum(row["is_anomalous"] == "False" for row in predicted.values())
    for _ in range(2):
        assert main(words) == 0
        assert f"no sign of drift in {passed} images that passed as good" in capsys.readouterr().out
    assert DriftTest.load(tmp_path / "a.drift").count == passed


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_unreadable_image_stops_or_is_a_row(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, output = make_images(tmp_path / "photos", 8, seed=2), tmp_path / "out"
    spoiled = photos / "1" / "004.png"
    content = spoiled.read_bytes()
    spoiled.write_bytes(content[:100])
    words = score_words(tiny_run, photos, output, "--block-size", "2", "--batch-size", "3")
    capsys.readouterr()
    assert main(words) == 2
    line = only_line(capsys)
    assert line.startswith(f"error: {spoiled} must be an intact image")
    stopped = files(output)
    assert len(stopped) < 4
    assert not stopped or "1/004.png" not in read(output)

    assert main([*words, "--on-error", "skip"]) == 0
    shown = capsys.readouterr()
    assert "scored 7 images, skipped 1" in shown.out
    assert f"1 image is not readable; the first error: {spoiled} must be an intact image" in shown.err
    skipped, rows = files(output), read(output)
    assert stopped.items() <= skipped.items()
    assert len(rows) == 8
    broken = rows.pop("1/004.png")
    assert str(spoiled) in broken.pop("error")
    assert set(broken.values()) == {None}
    assert all(row["error"] is None and row["score"] is not None for row in rows.values())

    spoiled.write_bytes(content)
    assert main(words) == 0
    repaired = files(output)
    assert len(repaired.items() & skipped.items()) == 3
    assert read(output)["1/004.png"]["score"] is not None
    for name, row in rows.items():
        again = read(output)[name]
        assert again.pop("score") == pytest.approx(row.pop("score"), rel=1e-5)  # in a batch with another image
        assert again == row


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_unreadable_list_and_unwritable_output(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("no.png\nnone.png\n")
    words = score_words(tiny_run, tmp_path / "list.txt", tmp_path / "a", "--on-error", "skip")
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith("list.txt must contain a readable image, but got none in 2")
    output = tmp_path / "b"
    (output / "blocks").mkdir(parents=True)
    words = score_words(tiny_run, make_images(tmp_path / "photos", 4), output)
    assert main(words) == 2
    assert "not empty" in only_line(capsys)
    (output / "blocks").rmdir()
    assert main(words) == 0
    (path,) = (output / "blocks").iterdir()
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    capsys.readouterr()
    assert main(words) == 2
    notice, *_, line = capsys.readouterr().err.splitlines()
    assert notice.startswith(f"{path} is broken, its block is computed again")
    assert line.startswith(f"error: {path} must be writable, but got ")


@pytest.mark.parametrize("change", ["the model", "the images", "--block-size", "--false-alarm-rate"])
def test_changed_options_are_rejected_before_ray_starts(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    run, photos, output = tmp_path / "run", make_images(tmp_path / "photos", 4), tmp_path / "out"
    shutil.copytree(tiny_run, run)
    origin = {"--model": fingerprint(run), "--false-alarm-rate": 0.1}
    BlockStore(output, read_listing(photos), 64, origin).open()
    more = {"--block-size": ["--block-size", "3"], "--false-alarm-rate": ["--false-alarm-rate", "0.2"]}
    if change == "the model":
        config = (run / "config.json").read_text()
        (run / "config.json").write_text(config.replace('"images": 14', '"images": 15'))
    elif change == "the images":
        make_images(photos, 5)
    names = {"the model": "--model", "the images": "number of images in --input"}
    capsys.readouterr()
    assert main(score_words(run, photos, output, *more.get(change, []))) == 2
    line = only_line(capsys)
    assert line.startswith(f"error: {names.get(change, change)} must be ")
    assert line.endswith("use the same value or choose a new folder")


def test_invalid_options_are_rejected(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_images(tmp_path / "photos", 2)
    for words, message in (
        (["--workers", "0"], "--workers must be at least 1, but got 0"),
        (["--block-size", "0"], "--block-size must be at least 1, but got 0"),
        (["--on-error", "fail"], "stop"),
        (["--model", str(tmp_path)], "config.json"),
    ):
        capsys.readouterr()
        assert main(score_words(tiny_run, photos, tmp_path / "out", *words)) == 2
        assert message in only_line(capsys)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_too_many_resources_are_rejected(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_images(tmp_path / "photos", 2)
    for option, value, message in (
        ("--workers", "50", "but got 50 with 1 threads each and one for decoding, 51 in total"),
        ("--device", "cuda", "--workers must be at most 0, the number of GPUs, but got 1"),
        ("--block-size", "1000000", "--block-size must be at most 349525"),
    ):
        capsys.readouterr()
        assert main(score_words(tiny_run, photos, tmp_path / option, "--workers", "1", option, value)) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_killed_worker_is_replaced(here: Any, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "out", read_listing(photos), 3, {})
    store.open()
    load = partial(load_dying, tiny_run, tmp_path / "killed")
    done = list(score_blocks(here, store, list(store), load, SIZE, Workers(2, batch_size=2)))
    assert (tmp_path / "killed").exists()
    assert sorted(block.block for block in done) == list(range(7))
    assert len(files(tmp_path / "out")) == 7
    assert len(read(tmp_path / "out")) == 21


def test_worker_out_of_memory_names_the_batch_size(here: Any, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "out", read_listing(photos), 4, {})
    store.open()
    with pytest.raises(ProcessError, match=r"^out of memory at a batch size of 4; try 2$"):
        list(score_blocks(here, store, list(store), partial(load_full, tiny_run), SIZE, Workers(batch_size=4)))


def broken_model(folder: Path) -> Any:
    raise CheckpointError(f"{folder} must be a model, but got none")


def failing_model(folder: Path) -> Any:
    raise KeyError(folder.name)


@pytest.mark.slow
def test_error_of_a_worker_keeps_its_type(here: Any, photos: Path, tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "out", read_listing(photos), 3, {})
    store.open()
    for load, kind, message in (
        (broken_model, CheckpointError, r"^a must be a model, but got none$"),
        (failing_model, ProcessError, r"^workers must finish, but got .*KeyError.*; repeat the command"),
    ):
        with pytest.raises(kind, match=message) as caught:
            list(score_blocks(here, store, list(store), partial(load, Path("a")), SIZE, Workers()))
        assert "\n" not in str(caught.value)
    assert files(tmp_path / "out") == {}


@pytest.mark.slow
def test_other_folder_on_a_worker_is_rejected(here: Any, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "out", read_listing(photos), 3, {})
    store.open()
    (tmp_path / "out" / "score.json").write_text("{}")
    with pytest.raises(DataError, match="must be the same folder on all machines"):
        list(score_blocks(here, store, list(store), partial(broken_model, tiny_run), SIZE, Workers()))


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the command in a process that is killed after the test."""
    command, pipe = [sys.executable, "-m", "semflow", *words], subprocess.PIPE
    with subprocess.Popen(command, env={**os.environ, **OFF}, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_restart_after_kills_scores_every_image_once(
    tiny_run: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    photos, output = make_images(tmp_path / "photos", 240), tmp_path / "out"
    words = score_words(tiny_run, photos, output, "--workers", "2", "--block-size", "2")
    kept: dict[str, tuple[int, int]] = {}
    for enough in (4, 40):
        with started(words) as process:
            while process.poll() is None and len(files(output) if (output / "blocks").is_dir() else ()) < enough:
                time.sleep(0.01)
            process.kill()
            printed = process.communicate()
        assert process.returncode == -signal.SIGKILL, printed
        time.sleep(3)  # its workers finish their blocks and exit
        there = files(output)
        assert kept.items() <= there.items()
        kept = there
        assert enough <= len(kept) < 120
    with started(words) as process:
        printed = process.communicate()
    assert process.returncode == 0, printed
    assert f"continuing: {len(kept)} of 120 blocks are done" in printed[0]
    assert "scored 240 images;" in printed[0]
    assert kept.items() <= files(output).items()
    found = read(output)
    assert sorted(found) == sorted(path.relative_to(photos).as_posix() for path in photos.glob("*/*.png"))
    assert all(row["score"] is not None for row in found.values())
    assert [path.name for path in (output / "blocks").glob(".*")] == []
    record_property("kills", 2)


@pytest.mark.slow
def test_interrupt_reports_how_to_continue(tiny_run: Path, tmp_path: Path) -> None:
    photos, output = make_images(tmp_path / "photos", 240), tmp_path / "out"
    with started(score_words(tiny_run, photos, output, "--block-size", "2")) as process:
        while process.poll() is None and not ((output / "blocks").is_dir() and files(output)):
            time.sleep(0.01)
        process.terminate()
        printed = process.communicate()
    assert process.returncode == 130, printed
    assert printed[1].splitlines()[-1].startswith("interrupted; run the same command")
    assert 1 <= len(files(output)) < 120


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["tiles", "region"])
def test_tiles_regions_pages_broken_files_and_drift_as_in_predict(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of several sizes with tiles; one has two pages, and one is broken."""
    photos, good = tmp_path / "photos", tmp_path / "good"
    make_images(photos, 6, seed=3)
    for number in range(30):
        make_images(good, 1, seed=100 + number)
        (good / "0" / "000.png").rename(good / f"{number}.png")
    for number, path in enumerate(sorted([*photos.glob("*/*"), *good.glob("*.png")])):
        with Image.open(path) as image:
            width = 2 * SIZE + (number % 3 if kind == "tiles" else 0)
            image.resize((width, 2 * SIZE)).save(path)
    first, second = (Image.open(path) for path in sorted(photos.glob("1/*")))
    first.save(photos / "pages.tif", save_all=True, append_images=[second])
    (photos / "broken.png").write_bytes((photos / "0/000.png").read_bytes()[:90])
    mask = tmp_path / "mask.png"
    Image.new("L", (2 * SIZE, 2 * SIZE), 0).save(mask)
    with Image.open(mask) as region:
        region.paste(255, (10, 10, 50, 60))
        region.save(mask)
    given = ["--tile", str(SIZE), "--overlap", "8"] if kind == "tiles" else ["--region", str(mask)]
    given += [] if kind == "tiles" else ["--image-size", str(SIZE)]
    words = ["fit", "--recipe", "patchcore", "--data", str(good), "--output", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--backbone", "test_efficientnet", "--weights", "random", "--hold-out", "10", *given]
    assert main([*words, "--set", "coreset", "60", "backbone.strides", "8,16", "blur", "0"]) == 0
    out, options = tmp_path / "out", ["--drift", str(tmp_path / "a.drift"), "--on-error", "skip"]
    words = score_words(tmp_path / "run", photos, out, "--block-size", "3", *options)
    capsys.readouterr()
    for repeated in (False, True):
        assert main(words) == 1
        printed = capsys.readouterr().out
        assert ("already complete" in printed) == repeated
        assert "scored 7 images, skipped 1" in printed
        assert "scored only the first page of 1 file with several; save each page as a file" in printed
        assert "no sign of drift" in printed
    predicted = ["predict", "--model", str(tmp_path / "run"), "--input", str(photos), "--output", str(tmp_path / "p")]
    assert main([*predicted, "--device", "cpu", "--on-error", "skip"]) == 1
    with (tmp_path / "p" / "scores.csv").open(newline="") as table:
        expected = {row["image"]: row for row in csv.DictReader(table)}
    found = read(out)
    assert "intact image" in found.pop("broken.png")["error"]
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name]["score"] == pytest.approx(float(row["score"]), rel=1e-5)
        assert found[name]["is_anomalous"] == (row["is_anomalous"] == "True")
