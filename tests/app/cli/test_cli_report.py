"""`semflow evaluate --report`: a page with curves and all images, which replaces an earlier one at once."""

import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import semflow
from helpers.cli_cases import SIZE, hidden, only_line, page_data, picture, save, snapshot
from semflow.app.cli import main
from semflow.data import open_dataset


def evaluate(run: Path, data: Path, *more: object) -> int:
    return main(["evaluate", "--model", str(run), "--data", str(data), "--device", "cpu", *map(str, more)])


def test_report_has_scores_labels_pictures_and_curves(shared_run: Path, shared_data: Path, tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report"
    assert evaluate(shared_run, shared_data, "--report", report, "--json", tmp_path / "metrics.json") == 0
    data, written = page_data(report), json.loads((report / "evaluation.json").read_text())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: written[name] for name in metrics} == metrics
    found = semflow.training.results(semflow.load(shared_run), open_dataset(shared_data, "test", SIZE))
    for row, image, result in zip(data["entries"], written["scores"], found, strict=True):
        assert row["name"] == image["image"] == Path(result.sample.path).relative_to(shared_data).as_posix()
        assert row["score"] == image["score"] == pytest.approx(result.score, abs=1e-5)
        assert row["label"] == image["label"] == result.sample.label
        expected = {"original", "overlay", "map", *(["truth"] if result.sample.label else [])}
        assert row["views"].keys() == expected
        for url in row["views"].values():
            with Image.open(report / unquote(url)) as shown:
                assert shown.size == (SIZE, SIZE)
    x, y = np.asarray(data["pro"]).T
    assert float(np.trapezoid(y, x)) / 0.3 == pytest.approx(written["aupro"], abs=2e-3)
    assert data["worstFirst"]
    assert f"{100 * written['image_auroc']:.2f}" in (report / "index.html").read_text()
    assert hidden(report.parent) == []


def test_report_without_masks_has_no_pro_curve(shared_run: Path, data: Path, tmp_path: Path) -> None:
    (data / "ground_truth").rename(tmp_path / "elsewhere")
    assert evaluate(shared_run, data, "--report", tmp_path / "report") == 0
    shown = page_data(tmp_path / "report")
    assert shown["pro"] == []
    assert {"truth" in row["views"] for row in shown["entries"]} == {False}
    assert not (tmp_path / "report" / "truths").exists()


def test_report_keeps_the_proportions_of_images(shared_run: Path, data: Path, tmp_path: Path) -> None:
    wide = np.tile(picture(np.random.default_rng(0)), (1, 20, 1))
    (data / "test/good/0.png").unlink()
    save(wide.astype(np.uint16)[..., 0] << 8, data / "test/good/0.tiff")  # no browser shows 16-bit TIFF
    assert evaluate(shared_run, data, "--report", tmp_path / "report") == 0
    row = next(row for row in page_data(tmp_path / "report")["entries"] if row["name"].endswith(".tiff"))
    assert row["size"] == [1024, 51]
    with Image.open(tmp_path / "report" / row["views"]["original"]) as shown:
        assert (shown.format, shown.size) == ("JPEG", (1024, 51))


def test_earlier_report_is_replaced_only_by_a_complete_one(
    shared_run: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report"
    assert evaluate(shared_run, shared_data, "--report", report) == 0
    (report / "originals/note.txt").write_text("of an earlier report")
    before = snapshot(report)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("semflow.app.cli.evaluation_report.render_page", stop)
        assert evaluate(shared_run, shared_data, "--report", report) == 130
    assert snapshot(report) == before
    assert evaluate(shared_run, shared_data, "--report", report) == 0
    assert snapshot(report).keys() == before.keys() - {"originals/note.txt"}
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("place", ["page.html", "others", "file"])
def test_report_refuses_other_places_before_it_scores(
    place: str, shared_run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others/metrics.json").write_text('{\n  "detectors": []}')  # of a demo, with models
    (tmp_path / "file").write_text("text")
    before = snapshot(tmp_path)
    assert evaluate(shared_run, shared_data, "--report", tmp_path / place) == 2
    line = only_line(capsys)
    assert str(tmp_path / place) in line
    assert "must be a" in line
    assert snapshot(tmp_path) == before


def test_report_inside_the_images_is_passed_over_later(shared_run: Path, data: Path) -> None:
    assert evaluate(shared_run, data, "--report", data / "test/hole/report") == 0
    assert evaluate(shared_run, data, "--report", data / "test/hole/report") == 0
    assert len(page_data(data / "test/hole/report")["entries"]) == 8
