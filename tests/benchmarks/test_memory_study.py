"""The study of memories and flows: its cells, the rule that chooses between them, and the report."""

import json
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.memory import __main__ as command
from benchmarks.memory import cells as cells_module
from benchmarks.memory.cells import StudyCell, detection, measure, perform
from benchmarks.memory.loose import LOOSE, write_loose
from benchmarks.memory.maps import Maps, Study, outside, turns
from benchmarks.memory.report import to_markdown
from benchmarks.memory.rows import FEATURES, LATENTS, ROWS, RULE, SCALES, Row, Setup
from benchmarks.shared.datasets import Data
from benchmarks.shared.runner import Outcome
from benchmarks.shared.store import CellStore
from benchmarks.shared.study import Job, Work
from PIL import Image

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "memory"
UNDER = Row(synthesis=False, under_memory=True)
SETUP = Setup("resnet18", "random", 64, vectors=50, steps=2)
SMALL = ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--steps", "2", "--vectors", "50"]


@pytest.fixture(scope="module")
def study(mvtec: Path) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.memory.maps.MADE", 6)
        patch.setattr("benchmarks.memory.maps.DEFECTS", 4)
        return Study(Data("mvtec", str(mvtec), "screw"), SETUP, seed=1, magnification=1.0)


def test_held_out_images_are_every_fifth(study: Study, mvtec: Path) -> None:
    images = torch.stack([item.image for item in Data("mvtec", str(mvtec), "screw").open("train", 64)])
    assert torch.equal(study.images["held"], images[1::5])
    assert torch.equal(study.images["known"], images[[0, 2, 3, 4, 5]])
    assert (study.images["defects"] != study.images["held"]).flatten(1).any(1).all()
    changed = (study.images["defects"] != study.images["held"]).any(1)
    assert not (changed & ~study.defect_masks).any()


def test_gray_images_are_those_of_their_copies_in_color(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.memory.maps.MADE", 6)
    monkeypatch.setattr("benchmarks.memory.maps.DEFECTS", 4)
    found = []
    for mode in ("L", "RGB"):
        shutil.copytree(mvtec / "screw", root := tmp_path / mode / "screw")
        for path in (*root.glob("train/*/*"), *root.glob("test/*/*")):
            Image.open(path).convert("L").convert(mode).save(path)
        found.append(Study(Data("mvtec", str(root.parent), "screw"), SETUP, seed=1, magnification=1.0))
    row = Row((("features", "8"),), memory="all")
    gray, color = (one.maps(row, "one scale").test for one in found)
    torch.testing.assert_close(gray, color)


def test_distances_are_to_the_nearest_stored_location(study: Study) -> None:
    row = Row((("features", "8"),), memory="all")
    found = study.maps(row, "one scale")
    known, test, held = (study.views(part)["8"].double() for part in ("known", "test", "held"))
    stored = known.movedim(1, 3).flatten(0, 2)
    far = [torch.cdist(x.movedim(1, 3).flatten(0, 2), stored).amin(1).log().view(x[:, 0].shape) for x in (test, held)]
    expected = (far[0] - far[1].mean()) / far[1].std()
    torch.testing.assert_close(found.test.double(), expected, rtol=1e-3, atol=1e-3)


def test_maps_are_standardized_and_summed(study: Study) -> None:
    kinds = [Row((part,)) for part in ROWS["features + latents"].parts]
    parts = [study.maps(row, "one") for row in kinds]
    for one in parts:
        assert one.held.mean().abs() < 1e-4
        assert one.held.std() == pytest.approx(1, abs=1e-4)
    total = study.maps(ROWS["features + latents"], "sum")
    torch.testing.assert_close(total.test, sum(one.test for one in parts), rtol=1e-4, atol=1e-4)


def test_log_det_and_nll_are_of_the_same_flow(study: Study) -> None:
    """The NLL is that of a normal distribution of variance 0.1, so it differs from |z|^2 by the log-det alone."""
    flow, code = study.trained("8", Row())
    x = study.views("test")["8"]
    with torch.no_grad():
        z, log_det = flow(x, code)
    expected = -(torch.distributions.Normal(0.0, 0.1**0.5).log_prob(z).sum(1) + log_det) / x.shape[1]
    raw = study.of_flow("NLL", "8", Row()).test
    offset = (expected - raw).mean()
    torch.testing.assert_close(raw + offset, expected, rtol=1e-4, atol=1e-4)


def test_a_flow_under_a_memory_is_trained_by_distances_to_other_images(study: Study) -> None:
    z = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))
    vectors = z.double().movedim(1, 3)
    for image in range(3):
        others = torch.cat([vectors[k] for k in range(3) if k != image]).flatten(0, 1)
        expected = (vectors[image][:, :, None] - others).norm(dim=3).amin(2).log()
        torch.testing.assert_close(outside(z)[image].double(), expected, rtol=1e-5, atol=1e-5)
    maps = {row.under_memory: study.of_flow("latents", "8", row) for row in (Row(synthesis=False), UNDER)}
    assert not torch.equal(maps[True].test, maps[False].test)


def test_rotated_images_are_stored_too(study: Study) -> None:
    part = (("features", "8"),)
    rows = [Row(part, memory="all", rotated=rotated) for rotated in (False, True)]
    plain, rotated = (study.maps(row, "distances") for row in rows)
    stored = [study.views("known", turned=turned)["8"] for turned in turns(rows[1])]
    assert len(stored) == 4
    turned = torch.stack([image.rot90(1, (1, 2)) for image in study.images["known"]])
    study.images["turned"] = turned
    torch.testing.assert_close(stored[1], study.views("turned")["8"])
    assert not torch.equal(plain.test, rotated.test)


def test_detection_is_perfect_for_the_mask_itself() -> None:
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[2:, 4:8, 4:8] = True
    labels = torch.tensor([0, 0, 1, 1])
    assert set(detection(masks.float(), labels, masks).values()) == {1.0}
    one = torch.zeros(4, 16, 16)
    one[0, 0, 0], one[2:, :, 8] = 2.0, 1.0  # the highest pixel is normal, the highest 3 % (eight) are not
    found = detection(one, labels, masks)
    assert (found["image_max"], found["image_3"]) == (0.5, 1.0)


def test_spread_is_that_of_the_log_det_on_held_out_images(study: Study) -> None:
    found = []
    for scale in SCALES:
        flow, code = study.trained(scale, Row())
        with torch.no_grad():
            _, log_det = flow(x := study.views("held")[scale], code)
        found.append((log_det.double() / x.shape[1]).std(correction=0).item())
    assert study.spread() == pytest.approx(sum(found) / 3, rel=1e-4)


@pytest.mark.parametrize(("spread", "choice"), [(0.0, LATENTS), (0.3, LATENTS), (0.31, FEATURES)])
def test_rule_takes_latents_up_to_a_spread(
    spread: float, choice: str, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {FEATURES: 0.7, LATENTS: 0.8}
    monkeypatch.setattr(Study, "spread", lambda _: spread)
    monkeypatch.setattr(cells_module, "figures", lambda name, study: {"aupro": values[name]})
    found = measure(RULE, study)
    assert (found["choice"], found["spread"]) == (choice, spread)
    assert found["metrics"]["aupro"] == values[choice]


def test_loose_parts_are_shifted_with_their_masks(mvtec: Path, tmp_path: Path) -> None:
    write_loose(mvtec / "screw", tmp_path / LOOSE, seed=0)
    whole = Data("mvtec", str(mvtec), "screw").open("test", 64)
    loose = Data("mvtec", str(tmp_path), LOOSE).open("test", 64)
    moved = 0
    for a, b in zip(whole, loose, strict=True):
        assert torch.equal(a.image.flatten(1).sort().values, b.image.flatten(1).sort().values)
        moved += not torch.equal(a.image, b.image)
    assert moved > 0


def here(
    jobs: Sequence[Job[StudyCell]], work: Work, at_a_time: int, threads: int | None
) -> Generator[Outcome[Job[StudyCell]], None, None]:
    """Run jobs as `run_all` does, without processes."""
    for job in jobs:
        yield Outcome(job, 1.0, work(job))


def test_command_measures_missing_cells_and_writes_a_report(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.memory.maps.MADE", 6)
    monkeypatch.setattr("benchmarks.memory.maps.DEFECTS", 4)
    made: list[str] = []

    def count(job: Job[StudyCell]) -> Any:
        made.extend(cell.key.row for cell in job.cells)
        return perform(job)

    def run(*words: str) -> int:
        start = ["--data", str(mvtec), "--categories", "screw", "--seeds", "0", *SMALL, "--output", str(tmp_path)]
        return command.run(command.parse([*start, *words]), ("python", *words), count, here)

    assert run("--rows", FEATURES, "--magnifications", "1") == 0
    assert run("--rows", FEATURES, LATENTS, RULE, "--magnifications", "1", "1.5") == 0
    rest = [f"{LATENTS} @ 1", f"{RULE} @ 1", *(f"{row} @ 1.5" for row in (FEATURES, LATENTS, RULE))]
    assert made == [f"{FEATURES} @ 1", *rest]
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    results = {line["row"]: line["result"] for line in lines}
    assert results[f"{RULE} @ 1"]["metrics"] == results[f"{results[f'{RULE} @ 1']['choice']} @ 1"]["metrics"]
    text = (tmp_path / "study.md").read_text()
    assert "## screw, 64 px, seeds 0" in text
    assert "| screw @ 1.5 | " in text


def test_rows_at_other_magnifications_are_those_of_the_choice(mvtec: Path) -> None:
    options = command.parse(
        ["--data", str(mvtec), "--categories", "screw", "--seeds", "0", "--magnifications", "1", "1.25", *SMALL]
    )
    cells = command.plan(options)
    assert len({cell.key for cell in cells}) == len(cells) == len(ROWS) + sum(row.magnified for row in ROWS.values())
    assert [len({cell.magnification for cell in group}) for group in command.groups(cells)] == [1, 1]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--rows", "best"], "--rows must be of features, latents"),
        (["--categories", "bottle"], "--categories must be of screw, toothbrush, loose_screw, brick, grass,"),
    ],
)
def test_invalid_names_are_named(
    more: list[str], complaint: str, mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--data", str(mvtec), "--output", str(tmp_path), *more]) == 2
    assert capsys.readouterr().err.startswith(f"error: {complaint}")


def test_parts_keep_their_order() -> None:
    maps = Maps(*torch.arange(3.0).view(3, 1, 1, 1))
    assert maps.each(torch.add, maps).held.item() == 2.0


def test_committed_report_is_made_from_the_committed_cells() -> None:
    kept = list(CellStore(RESULTS / "cells.jsonl", notice=pytest.fail).latest().values())
    assert (RESULTS / "study.md").read_text("utf-8") == to_markdown(kept)
