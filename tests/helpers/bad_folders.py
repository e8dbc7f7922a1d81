"""Bad input: data sets, and commands that read them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.bad_rows import SIZE, CommandError, Row, Works, Workspace, refused, stripes
from semflow.data import MVTecAD, load_mask, open_dataset
from semflow.errors import ConfigError, DataError

__all__ = ["FOLDERS"]


def after(change: Callable[[Path], object], *words: object, command: str = "evaluate") -> Callable[[Workspace], object]:
    """Run a command on a changed data set."""

    def act(workspace: Workspace) -> object:
        change(workspace.dataset())
        return getattr(workspace, command)(*words)

    return act


def changed(change: Callable[[Path], object]) -> Callable[[Workspace], object]:
    """Read every test sample of a changed data set."""

    def act(workspace: Workspace) -> object:
        change(workspace.dataset())
        return [sample.label for sample in MVTecAD(workspace.path / "data", "test", SIZE)]

    return act


def off_by_one(data: Path) -> None:
    Image.fromarray(np.eye(SIZE, SIZE - 1, dtype=np.uint8) * 255).save(data / "ground_truth/hole/1_mask.png")


def copied(data: Path) -> None:
    shutil.copy(data / "train/good/1.png", data / "test/good/9.png")


def warned(text: object) -> object:
    """Check that the command warned and named both files."""
    line = next((line for line in str(text).splitlines() if line.startswith("warning:")), "")
    return "test/good/9.png" in line and "train/good/1.png" in line and "too good" in line


def all_anomalous(inside: bool) -> Callable[[Workspace], object]:
    def act(workspace: Workspace) -> object:
        workspace.dataset()
        workspace.mask("data/ground_truth/hole/0_mask.png", inside=inside)
        if inside:
            shutil.rmtree(workspace.path / "data/test/good")
            (workspace.path / "data/test/good").mkdir()
        return workspace.evaluate("--json", workspace.path / "metrics.json")

    return act


def mask_all_anomalous(workspace: Workspace) -> object:
    all_anomalous(inside=False)(workspace)
    workspace.mask("data/ground_truth/hole/0_mask.png", inside=True)
    workspace.evaluate("--json", workspace.path / "metrics.json")
    return 0 <= json.loads((workspace.path / "metrics.json").read_text())["pixel_auroc"] <= 1


def empty_mask(workspace: Workspace) -> object:
    workspace.dataset()
    workspace.mask("data/ground_truth/hole/0_mask.png", level=0)
    line = workspace.evaluate().splitlines()[0]
    return line.startswith("warning:") and "0_mask.png is empty" in line


def mask_values(values: list[int]) -> Callable[[Workspace], object]:
    return lambda workspace: load_mask(
        workspace.picture("mask.png", Image.fromarray(np.array([values], np.uint8).repeat(len(values), 0))), len(values)
    )[0].tolist()


def trained(count: int, image: Image.Image | None = None) -> Callable[[Workspace], object]:
    """Train on `count` images, or on copies of one, and check that a score is finite."""

    def act(workspace: Workspace) -> object:
        for number in range(count):
            workspace.picture(f"data/{number}.png", image, seed=number)
        workspace.fit()
        workspace.picture("photos/a.png", seed=99)
        workspace.run = workspace.path / "run"
        workspace.predict()
        return bool(np.isfinite(json.loads((workspace.path / "results/scores.json").read_text())["images"][0]["score"]))

    return act


def mixed_sizes(workspace: Workspace) -> object:
    for number, size in enumerate([(40, 80), (200, 30), (64, 64)]):
        workspace.picture(f"data/{number}.png", stripes(number, size))
    return [tuple(sample.image.shape) for sample in open_dataset(workspace.path / "data", "train", SIZE)]


def photos(*names: str, broken: tuple[str, ...] = ()) -> Callable[[Workspace], None]:
    def make(workspace: Workspace) -> None:
        for number, name in enumerate(names):
            workspace.picture(f"photos/{name}", seed=number)
        for name in broken:
            workspace.file(f"photos/{name}", b"not an image")

    return make


def predicted(make: Callable[[Workspace], object], *words: object) -> Callable[[Workspace], object]:
    def act(workspace: Workspace) -> object:
        make(workspace)
        return workspace.predict(*words)

    return act


def skipped(workspace: Workspace) -> object:
    photos("a.png", "c.png", broken=("b.png",))(workspace)
    written = workspace.predict("--on-error", "skip")
    content = json.loads((workspace.path / "results/scores.json").read_text())
    page = (workspace.path / "results/index.html").read_text()
    reason = content["left_out"][0]["reason"]
    return (
        [record["image"] for record in content["images"]] == ["a.png", "c.png"]
        and [record["image"] for record in content["left_out"]] == ["b.png"]
        and "b.png" in reason
        and f"skipped 'b.png': {reason}" in written
        and "Skipped b.png" in page
    )


def same_image_twice(workspace: Workspace) -> object:
    for name in ("a.png", "sub/a.png"):
        workspace.picture(f"photos/{name}")
    workspace.predict()
    content = json.loads((workspace.path / "results/scores.json").read_text())
    return len({record["score"] for record in content["images"]}), len(content["images"])


FOLDERS = [
    Row("missing folder", after(shutil.rmtree, command="fit"), refused(CommandError, "data", "no such path")),
    Row(
        "folder without images",
        lambda workspace: open_dataset(workspace.path, "train"),
        refused(DataError, "must contain images"),
    ),
    Row(
        "file instead of a folder",
        lambda workspace: open_dataset(workspace.file("a.zip", b"PK"), "train"),
        refused(DataError, "file"),
    ),
    Row(
        "no good images",
        after(lambda data: [path.unlink() for path in (data / "train/good").iterdir()], command="fit"),
        refused(CommandError, "train", "must contain images"),
    ),
    Row(
        "folder with good and bad training images",
        lambda workspace: (
            workspace.picture("good/a.png"),
            workspace.picture("bad/a.png"),
            open_dataset(workspace.path, "train"),
        )[2],
        refused(DataError, "bad, good", "name the one folder"),
    ),
    Row(
        "broken training image",
        after(lambda data: (data / "train/good/2.png").write_bytes(b"not an image"), command="fit"),
        refused(CommandError, "2.png", "cannot identify"),
    ),
    Row("one training image", trained(1), Works("trains; scores are finite")),
    Row("identical training images", trained(4, stripes()), Works("trains; scores are finite")),
    Row(
        "training images of one color",
        trained(3, Image.new("RGB", (SIZE, SIZE), (90, 90, 90))),
        Works("trains; scores are finite"),
    ),
    Row("images of different sizes", mixed_sizes, Works("resized to one size", [(3, SIZE, SIZE)] * 3)),
    Row(
        "test image among the training images, in evaluate",
        lambda workspace: warned(after(copied)(workspace)),
        Works("warns and names both files"),
    ),
    Row(
        "test image among the training images, in fit",
        lambda workspace: warned(after(copied, command="fit")(workspace)),
        Works("warns and names both files"),
    ),
    Row("mask file off by one pixel", changed(off_by_one), refused(DataError, "1_mask.png", "64 x 64", "63 x 64")),
    Row("mask off by one pixel, in evaluate", after(off_by_one), refused(CommandError, "1_mask.png", "63 x 64")),
    Row(
        "missing mask",
        changed(lambda data: (data / "ground_truth/hole/1_mask.png").unlink()),
        refused(DataError, "hole/1.png", "add the mask"),
    ),
    Row(
        "broken mask",
        after(lambda data: (data / "ground_truth/hole/1_mask.png").write_bytes(b"not an image")),
        refused(CommandError, "1_mask.png", "cannot identify"),
    ),
    Row("mask file that is all anomalous", mask_all_anomalous, Works("used as it is")),
    Row(
        "no normal image and no normal pixel",
        all_anomalous(inside=True),
        refused(CommandError, "only anomalous images"),
    ),
    Row("empty mask of an anomalous image", empty_mask, Works("warns and names the mask")),
    Row("mask with values 0 and 1", mask_values([0, 1, 0, 1]), Works("1 is anomalous", [False, True, False, True])),
    Row(
        "mask with class numbers",
        mask_values([0, 3, 7, 0]),
        Works("all but 0 are anomalous", [False, True, True, False]),
    ),
    Row(
        "only good test images",
        after(lambda data: shutil.rmtree(data / "test/hole")),
        refused(CommandError, "only normal images"),
    ),
    Row(
        "test image outside the defect folders",
        changed(lambda data: shutil.copy(data / "test/good/0.png", data / "test/0.png")),
        refused(DataError, "0.png directly in it"),
    ),
    Row(
        "unknown category",
        lambda workspace: open_dataset(workspace.dataset().parent, "test", category="screw"),
        refused(DataError, "screw", "got data"),
    ),
    Row(
        "unknown split", lambda workspace: open_dataset(workspace.path, "valid"), refused(ConfigError, "split", "valid")
    ),  # type: ignore[arg-type]
    Row(
        "predict: broken image",
        predicted(photos("a.png", "c.png", broken=("b.png",))),
        refused(CommandError, "b.png", "cannot identify"),
    ),
    Row(
        "predict --on-error skip: broken image",
        skipped,
        Works("scores the others; scores.json and index.html list the broken image"),
    ),
    Row(
        "predict --on-error skip: only broken images",
        predicted(photos(broken=("a.png", "b.png")), "--on-error", "skip"),
        refused(CommandError, "got none in 2", "a.png"),
    ),
    Row("predict: the same image in two folders", same_image_twice, Works("two entries with one score", (1, 2))),
    Row(
        "predict: output folder that is not empty",
        predicted(lambda workspace: (photos("a.png")(workspace), workspace.file("results/notes.txt"))),
        refused(CommandError, "results", "not empty"),
    ),
    Row(
        "predict: output inside a file",
        predicted(lambda workspace: (photos("a.png")(workspace), workspace.file("file")), "--output", "file/results"),
        refused(CommandError, "file"),
    ),
]
