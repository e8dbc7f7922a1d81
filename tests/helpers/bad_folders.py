"""Rows of the table: data sets, and the commands on them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.bad_rows import SIZE, CommandError, Room, Row, Works, refused, stripes
from semflow.data import MVTecAD, load_mask, open_dataset
from semflow.errors import ConfigError, DataError

__all__ = ["FOLDERS"]


def after(spoil: Callable[[Path], object], *words: object, command: str = "evaluate") -> Callable[[Room], object]:
    """A command on a data set that has been spoiled."""

    def act(room: Room) -> object:
        spoil(room.dataset())
        return getattr(room, command)(*words)

    return act


def spoiled(spoil: Callable[[Path], object]) -> Callable[[Room], object]:
    """Every sample of the test half of a data set that has been spoiled."""

    def act(room: Room) -> object:
        spoil(room.dataset())
        return [sample.label for sample in MVTecAD(room.path / "data", "test", SIZE)]

    return act


def one_off(data: Path) -> None:
    Image.fromarray(np.full((SIZE, SIZE - 1), 255, np.uint8)).save(data / "ground_truth/hole/1_mask.png")


def copied(data: Path) -> None:
    shutil.copy(data / "train/good/1.png", data / "test/good/9.png")


def warned(text: object) -> object:
    """Whether the warning names both files, and the command went on to its end."""
    line = next((line for line in str(text).splitlines() if line.startswith("warning:")), "")
    return "test/good/9.png" in line and "train/good/1.png" in line and "too good" in line


def all_anomalous(inside: bool) -> Callable[[Room], object]:
    def act(room: Room) -> object:
        room.dataset()
        room.mask("data/ground_truth/hole/0_mask.png", inside=inside)
        if inside:
            shutil.rmtree(room.path / "data/test/good")
            (room.path / "data/test/good").mkdir()
        return room.evaluate("--json", room.path / "figures.json")

    return act


def mask_that_is_all_anomalous(room: Room) -> object:
    all_anomalous(inside=False)(room)
    room.mask("data/ground_truth/hole/0_mask.png", inside=True)
    room.evaluate("--json", room.path / "figures.json")
    return 0 <= json.loads((room.path / "figures.json").read_text())["pixel_auroc"] <= 1


def mask_that_marks_nothing(room: Room) -> object:
    room.dataset()
    room.mask("data/ground_truth/hole/0_mask.png", level=0)
    line = room.evaluate().splitlines()[0]
    return line.startswith("warning:") and "0_mask.png: marks nothing" in line


def mask_values(values: list[int]) -> Callable[[Room], object]:
    return lambda room: load_mask(
        room.picture("mask.png", Image.fromarray(np.array([values], np.uint8).repeat(len(values), 0))), len(values)
    )[0].tolist()


def trained(count: int, image: Image.Image | None = None) -> Callable[[Room], object]:
    """Whether training ends, on so many images or on so many copies of one, and a score is finite afterwards."""

    def act(room: Room) -> object:
        for number in range(count):
            room.picture(f"data/{number}.png", image, seed=number)
        room.fit()
        room.picture("photos/a.png", seed=99)
        room.run = room.path / "run"
        room.predict()
        return bool(np.isfinite(json.loads((room.path / "results/scores.json").read_text())["images"][0]["score"]))

    return act


def mixed_sizes(room: Room) -> object:
    for number, size in enumerate([(40, 80), (200, 30), (64, 64)]):
        room.picture(f"data/{number}.png", stripes(number, size))
    return [tuple(sample.image.shape) for sample in open_dataset(room.path / "data", "train", SIZE)]


def photos(*names: str, broken: tuple[str, ...] = ()) -> Callable[[Room], None]:
    def make(room: Room) -> None:
        for number, name in enumerate(names):
            room.picture(f"photos/{name}", seed=number)
        for name in broken:
            room.file(f"photos/{name}", b"no image")

    return make


def predicted(make: Callable[[Room], object], *words: object) -> Callable[[Room], object]:
    def act(room: Room) -> object:
        make(room)
        return room.predict(*words)

    return act


def skipped(room: Room) -> object:
    photos("a.png", "c.png", broken=("b.png",))(room)
    written = room.predict("--on-error", "skip")
    content = json.loads((room.path / "results/scores.json").read_text())
    page = (room.path / "results/index.html").read_text()
    reason = content["left_out"][0]["reason"]
    return (
        [record["image"] for record in content["images"]] == ["a.png", "c.png"]
        and [record["image"] for record in content["left_out"]] == ["b.png"]
        and "b.png" in reason
        and f"left out 'b.png': {reason}" in written
        and "Left out: b.png" in page
    )


def same_picture_twice(room: Room) -> object:
    for name in ("a.png", "sub/a.png"):
        room.picture(f"photos/{name}")
    room.predict()
    content = json.loads((room.path / "results/scores.json").read_text())
    return len({record["score"] for record in content["images"]}), len(content["images"])


FOLDERS = [
    Row("no such folder", after(shutil.rmtree, command="fit"), refused(CommandError, "data", "no such folder")),
    Row("folder without images", lambda room: open_dataset(room.path, "train"), refused(DataError, "it holds none")),
    Row(
        "file in place of a folder",
        lambda room: open_dataset(room.file("a.zip", b"PK"), "train"),
        refused(DataError, "file"),
    ),
    Row(
        "no good images",
        after(lambda data: [path.unlink() for path in (data / "train/good").iterdir()], command="fit"),
        refused(CommandError, "train", "it holds none"),
    ),
    Row(
        "folder of good and bad images for training",
        lambda room: (room.picture("good/a.png"), room.picture("bad/a.png"), open_dataset(room.path, "train"))[2],
        refused(DataError, "bad, good", "name the one folder"),
    ),
    Row(
        "broken training image",
        after(lambda data: (data / "train/good/2.png").write_bytes(b"no image"), command="fit"),
        refused(CommandError, "2.png", "cannot identify"),
    ),
    Row("one training image", trained(1), Works("trains, and scores are finite")),
    Row("training images that are all the same", trained(4, stripes()), Works("trains, and scores are finite")),
    Row(
        "training images of one colour",
        trained(3, Image.new("RGB", (SIZE, SIZE), (90, 90, 90))),
        Works("trains, and scores are finite"),
    ),
    Row("images of mixed sizes", mixed_sizes, Works("all at one size", [(3, SIZE, SIZE)] * 3)),
    Row(
        "test image among the training images, in evaluate",
        lambda room: warned(after(copied)(room)),
        Works("a warning names both"),
    ),
    Row(
        "test image among the training images, in fit",
        lambda room: warned(after(copied, command="fit")(room)),
        Works("a warning names both"),
    ),
    Row("mask file off by one pixel", spoiled(one_off), refused(DataError, "1_mask.png", "64 x 64", "63 x 64")),
    Row("mask off by one pixel, in evaluate", after(one_off), refused(CommandError, "1_mask.png", "63 x 64")),
    Row(
        "mask that is missing",
        spoiled(lambda data: (data / "ground_truth/hole/1_mask.png").unlink()),
        refused(DataError, "hole/1.png", "add the mask"),
    ),
    Row(
        "mask that is broken",
        after(lambda data: (data / "ground_truth/hole/1_mask.png").write_bytes(b"no image")),
        refused(CommandError, "1_mask.png", "cannot identify"),
    ),
    Row("mask file that is all anomalous", mask_that_is_all_anomalous, Works("counted as it is")),
    Row(
        "no normal image and no normal pixel",
        all_anomalous(inside=True),
        refused(CommandError, "only anomalous images"),
    ),
    Row("mask that marks nothing", mask_that_marks_nothing, Works("a warning names it")),
    Row("mask of 0 and 1", mask_values([0, 1, 0, 1]), Works("1 is anomalous", [False, True, False, True])),
    Row("mask of class numbers", mask_values([0, 3, 7, 0]), Works("all but 0", [False, True, True, False])),
    Row(
        "only good test images",
        after(lambda data: shutil.rmtree(data / "test/hole")),
        refused(CommandError, "only normal images"),
    ),
    Row(
        "test image outside the folders of kinds",
        spoiled(lambda data: shutil.copy(data / "test/good/0.png", data / "test/0.png")),
        refused(DataError, "0.png lies directly in it", "move it"),
    ),
    Row(
        "category that is not there",
        lambda room: open_dataset(room.dataset().parent, "test", category="screw"),
        refused(DataError, "screw", "it holds data"),
    ),
    Row("split of another name", lambda room: open_dataset(room.path, "valid"), refused(ConfigError, "split", "valid")),  # type: ignore[arg-type]
    Row(
        "predict: a broken image stops",
        predicted(photos("a.png", "c.png", broken=("b.png",))),
        refused(CommandError, "b.png", "cannot identify"),
    ),
    Row("predict --on-error skip: a broken image", skipped, Works("the others are scored, it is listed in all places")),
    Row(
        "predict --on-error skip: only broken images",
        predicted(photos(broken=("a.png", "b.png")), "--on-error", "skip"),
        refused(CommandError, "none of 2 can", "a.png"),
    ),
    Row("predict: the same picture in two folders", same_picture_twice, Works("one score, two entries", (1, 2))),
    Row(
        "predict: an output that is not empty",
        predicted(lambda room: (photos("a.png")(room), room.file("results/precious.txt"))),
        refused(CommandError, "results", "not empty"),
    ),
    Row(
        "predict: an output below a file",
        predicted(lambda room: (photos("a.png")(room), room.file("file")), "--output", "file/results"),
        refused(CommandError, "file"),
    ),
]
