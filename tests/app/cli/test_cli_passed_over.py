"""The commands follow links, skip system folders and earlier results, and say what they passed over and why."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.cli_cases import fit_words, only_line, picture, save
from semflow.app.cli import demo, main
from semflow.data import ImageFolder, decode_image

PAGES = "pages after the first: save each as a file"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    save(picture(rng), tmp_path / "photos" / "a.png")
    Image.fromarray(picture(rng)).save(tmp_path / "photos" / "b.jfif", "JPEG")
    save(picture(rng), tmp_path / "elsewhere" / "c.png")
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "photos"


def predict(run: Path, photos: Path, output: Path) -> int:
    words = ["predict", "--model", str(run), "--input", str(photos), "--output", str(output), "--device", "cpu"]
    return main(words)


def test_predict_scores_everything_readable_and_names_the_rest(
    shared_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(shared_run, photos, photos / "earlier") == 0
    assert "passed over" not in capsys.readouterr().out
    (photos / "d.nef").touch()
    save(picture(np.random.default_rng(0)), photos / "@eaDir" / "a.png" / "SYNOPHOTO_THUMB_M.png")
    assert predict(shared_run, photos, tmp_path / "results") == 1
    summary = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("scored"))
    assert summary.startswith("scored 3 images; the most anomalous is ")
    expected = {
        "@eaDir": "system folder",
        "d.nef": "camera raw: develop it to PNG or TIFF",
        "earlier": "results of semflow",
    }
    listed = ", ".join(f"{name} ({reason})" for name, reason in expected.items())
    assert summary.endswith(f"; passed over 3: {listed}")
    content = json.loads((tmp_path / "results/scores.json").read_text())
    assert [record["image"] for record in content["images"]] == ["a.png", "b.jfif", "more/c.png"]
    assert content["passed_over"] == [{"path": name, "reason": reason} for name, reason in expected.items()]
    page = (tmp_path / "results/index.html").read_text()
    assert "Passed over d.nef: camera raw" in page
    assert predict(shared_run, photos, tmp_path / "results") == 1
    assert "already complete for this model and these images; passed over 3: @eaDir" in capsys.readouterr().out


def test_predict_reads_the_formats_of_the_extra(
    shared_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pillow_heif", reason="pip install semflow[formats]")
    pytest.importorskip("pillow_jxl", reason="pip install semflow[formats]")
    assert main(["predict", "--model", str(shared_run), "--input", str(photos), "--output", str(tmp_path / "o")]) == 0
    gradient = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack([np.tile(gradient, (48, 1))] * 3, 2)
    for name in ("phone.heic", "PHONE.HIF", "camera.jxl"):
        form = "JXL" if name.endswith("jxl") else "HEIF"
        Image.fromarray(pixels).save(photos / name, form, quality=95)
        read = np.asarray(decode_image(photos / name), dtype=int)
        assert np.abs(read - pixels).max() <= 6
    assert predict(shared_run, photos, tmp_path / "more") == 0
    assert "scored 6 images" in capsys.readouterr().out
    (photos / "phone.heic").write_bytes((photos / "phone.heic").read_bytes()[:200])
    assert predict(shared_run, photos, tmp_path / "none") == 2
    assert "phone.heic must be an intact image (PNG JPEG" in capsys.readouterr().err
    words = ["predict", "--model", str(shared_run), "--input", str(photos), "--output", str(tmp_path / "skipped")]
    assert main([*words, "--on-error", "skip"]) == 0


@pytest.mark.parametrize("name", ["a.cr2", "b.mov", "c.dng", "d.tar", "e.exr"])
def test_exit_code_tells_that_something_was_not_read(shared_run: Path, photos: Path, tmp_path: Path, name: str) -> None:
    assert predict(shared_run, photos, tmp_path / "all") == 0
    (photos / name).touch()
    assert predict(shared_run, photos, tmp_path / "some") == 1


def test_predict_refuses_an_image_whose_outputs_need_the_name_of_a_folder(
    shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "a.png.png/b.png"):
        save(picture(np.random.default_rng(0)), tmp_path / "photos" / name)
    assert predict(shared_run, tmp_path / "photos", tmp_path / "results") == 2
    line = only_line(capsys)
    assert "a.png.png/b.png" in line
    assert "not a.png with a suffix" in line


def test_evaluate_counts_linked_defects_and_lists_what_it_passed_over(
    shared_run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "test/hole").rename(tmp_path / "hole")
    (data / "test/hole").symlink_to(tmp_path / "hole")
    (data / "test/good/lost+found").mkdir()
    (data / "test/scratch").symlink_to(tmp_path / "missing")
    found = tmp_path / "metrics.json"
    assert main(["evaluate", "--model", str(shared_run), "--data", str(data), "--json", str(found)]) == 1
    out = capsys.readouterr().out
    note = "; passed over 2: test/good/lost+found (system folder), test/scratch (broken link)"
    assert f"evaluated 8 images{note}" in out
    content = json.loads(found.read_text())
    assert (content["images"], content["anomalous_images"]) == (8, 4)
    assert content["passed_over"][1] == {"path": "test/scratch", "reason": "broken link"}


def test_fit_and_calibrate_follow_links_and_name_what_they_passed_over(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train/good").rename(tmp_path / "good")
    (data / "train/good").symlink_to(tmp_path / "good")
    (tmp_path / "good" / "x.cr2").touch()
    assert main(fit_words(data, tmp_path / "run")) == 1
    reason = "x.cr2 (camera raw: develop it to PNG or TIFF)"
    assert f"on 8 images of {data}, cpu; passed over 1: {reason}" in capsys.readouterr().out
    rng = np.random.default_rng(9)
    for number in range(8):
        save(picture(rng), tmp_path / "more" / f"{number}.png")
    (tmp_path / "more" / "x.cr2").touch()
    words = ["calibrate", "--model", str(tmp_path / "run"), "--data", str(tmp_path / "more"), "--device", "cpu"]
    assert main([*words, "--false-alarm-rate", "0.2"]) == 1
    assert f"calibrating on 8 images; passed over 1: {reason}" in capsys.readouterr().out


def test_results_of_the_demo_are_no_images(tmp_path: Path) -> None:
    save(picture(np.random.default_rng(0)), tmp_path / "a.png")
    save(picture(np.random.default_rng(0)), tmp_path / "semflow-demo" / "gallery.png")
    (tmp_path / "semflow-demo" / demo.METRICS_FILE).write_text(json.dumps({"detectors": []}, indent=2))
    save(picture(np.random.default_rng(0)), tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / demo.METRICS_FILE).write_text(json.dumps({"image_auroc": 1.0, "semflow": "1"}, indent=2))
    assert len(ImageFolder(tmp_path)) == 2


@pytest.mark.parametrize("form", ["tif", "gif", "webp", "png"])
def test_predict_tells_that_only_the_first_page_was_read(
    shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    paged = many_pages(tmp_path / "photos", form)
    for path in (paged.parent, paged.parent, paged):  # a folder, the same again, and one file
        assert predict(shared_run, path, tmp_path / f"results{path.suffix}") == 1
        assert f"passed over 1: {paged.name if path != paged else paged} ({PAGES})" in capsys.readouterr().out


def test_commands_on_folders_tell_that_only_the_first_page_was_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, folder in enumerate((data / "train/good", data / "test/good", tmp_path / "more")):
        name = many_pages(folder, "tif", seed).name
    for number in range(8):
        save(picture(np.random.default_rng(100 + number)), tmp_path / "more" / f"{number}.png")
    model, device = ["--model", str(tmp_path / "run")], ["--device", "cpu"]
    more = ["--data", str(tmp_path / "more"), "--false-alarm-rate", "0.2"]
    for words, place in (
        (fit_words(data, tmp_path / "run"), name),
        (["evaluate", *model, "--data", str(data), *device], f"test/good/{name}"),
        (["calibrate", *model, *more, *device], name),
    ):
        assert main(words) == 1
        assert f"passed over 1: {place} ({PAGES})" in capsys.readouterr().out
    (data / "train/good" / name).unlink()
    given = ["--calibration", str(tmp_path / "more"), "--false-alarm-rate", "0.2"]
    assert main([*fit_words(data, tmp_path / "other"), *given]) == 1
    assert f"more/{name} ({PAGES})" in capsys.readouterr().out


def many_pages(folder: Path, form: str, seed: int = 0) -> Path:
    """Save two pictures in one file."""
    folder.mkdir(exist_ok=True)
    first, second = (Image.fromarray(picture(np.random.default_rng([page, seed]))) for page in range(2))
    first.save(folder / f"pages.{form}", save_all=True, append_images=[second])
    return folder / f"pages.{form}"
