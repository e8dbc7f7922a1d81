"""Images are found by every ending that Pillow reads and through links; what is passed over is listed with a reason."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.data_cases import fails, relative, save_gray
from semflow.data import ImageDataset, ImageFolder, MVTecAD, open_dataset
from semflow.data.endings import formats_of, image_endings
from semflow.data.walking import scan

RNG = np.random.default_rng(0)


def passed(dataset: ImageDataset, root: Path) -> dict[str, str]:
    return {item.path.relative_to(root).as_posix(): item.reason for item in dataset.passed_over}


def savable() -> list[str]:
    """Return the endings of the formats that Pillow can also write."""
    registered = Image.registered_extensions()
    return sorted(ending for ending in image_endings() if registered[ending] in Image.SAVE)


@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
@pytest.mark.parametrize("ending", savable())
def test_every_ending_that_pillow_reads_is_found_and_decoded(tmp_path: Path, ending: str) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for mode in ("RGB", "P", "L", "1"):  # the first one that the format can store
        try:
            image.convert(mode).save(tmp_path / f"a{ending}")
            break
        except (OSError, ValueError):
            (tmp_path / f"a{ending}").unlink(missing_ok=True)
    dataset = ImageFolder(tmp_path, 8)
    assert relative(dataset, tmp_path) == [f"a{ending}"]
    assert dataset[0].image.std() > 0.01


def test_endings_cover_the_common_variants() -> None:
    expected = {".jfif", ".jpe", ".dib", ".apng", ".j2k", ".jpx", ".pnm", ".pfm", ".tga", ".pcx", ".qoi", ".mpo"}
    assert expected <= image_endings()
    assert not {".eps", ".wmf", ".mpg", ".fits", ".h5"} & image_endings()
    assert "TGA" not in formats_of("a.png")  # it has no signature, so other bytes could pass for it


def test_scan_names_what_it_passes_over(tmp_path: Path) -> None:
    save_gray(tmp_path / "a.png")
    for name in ("b.NEF", "c.mp4", "d.dng", "e.svg", "f.zip", "g.eps"):
        (tmp_path / name).touch()
    for name in (".thumb.png", ".cache/x.png", "@eaDir/a.png/x.png", "lost+found/x.png", "sub/$RECYCLE.BIN/x.png"):
        save_gray(tmp_path / name)
    for name in ("notes.txt", ".DS_Store", "scores.csv", "README"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "IMG_0001").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "gone").symlink_to(tmp_path / "missing")
    dataset = ImageFolder(tmp_path)
    assert relative(dataset, tmp_path) == ["a.png"]
    assert passed(dataset, tmp_path) == {
        ".cache": "hidden folder",
        ".thumb.png": "hidden file",
        "@eaDir": "system folder",
        "IMG_0001": "image without a file ending: rename it",
        "b.NEF": "camera raw: develop it to PNG or TIFF",
        "c.mp4": "video: save its frames as images",
        "d.dng": "camera raw: develop it to PNG or TIFF",
        "e.svg": "format that is not read: save it as PNG or TIFF",
        "f.zip": "archive: unpack it",
        "g.eps": "format that is not read: save it as PNG or TIFF",
        "gone": "broken link",
        "lost+found": "system folder",
        "sub/$RECYCLE.BIN": "system folder",
    }


def test_folder_with_nothing_readable_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "b.cr2").touch()
    fails(lambda: ImageFolder(tmp_path), tmp_path, "only b.cr2 (camera raw: develop it to PNG or TIFF)")


def test_scan_follows_links_and_visits_each_folder_once(tmp_path: Path) -> None:
    root = tmp_path / "in"
    save_gray(root / "b" / "1.png")
    save_gray(tmp_path / "elsewhere" / "deep" / "2.png")
    (root / "a").symlink_to(root / "b")  # found under its own name
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "d").symlink_to("c/deep")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "b" / "up").symlink_to("..")
    (root / "b" / "top").symlink_to("/")
    (root / "self").symlink_to("self")
    found = scan(root)
    assert [path.relative_to(root).as_posix() for path in found.images] == ["b/1.png", "c/deep/2.png"]
    assert {path.relative_to(root).as_posix(): reason for path, reason, _ in found.passed_over} == {
        "a": f"same folder as {root / 'b'}",
        "b/top": "link to a folder around it",
        "b/up": "link to a folder around it",
        "c/back": f"same folder as {root}",
        "d": f"same folder as {root / 'c' / 'deep'}",
        "self": "broken link",
    }


def test_scan_of_folders_linked_to_each_other_ends(tmp_path: Path) -> None:
    names = [f"{k}" for k in range(12)]
    for name in names:
        save_gray(tmp_path / name / "image.png")
        for other in names:
            (tmp_path / name / f"to{other}").symlink_to(tmp_path / other)
    assert len(scan(tmp_path).images) == len(names)


@pytest.mark.parametrize("masks", [False, True])
def test_linked_folders_of_a_data_set_are_followed(tmp_path: Path, masks: bool) -> None:
    root = tmp_path / "part"
    for name in ("train", "good", "scratch"):
        for k in range(3):
            save_gray(tmp_path / "real" / name / f"{k}.png")
    for name, target in (("train/good", "train"), ("test/good", "good"), ("test/scratch", "scratch")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(tmp_path / "real" / target)
    if masks:
        (root / "ground_truth").mkdir()
        (root / "ground_truth/scratch").symlink_to(tmp_path / "real" / "masks")
        for k in range(3):
            save_gray(tmp_path / "real" / "masks" / f"{k}_mask.png", 0)
    (root / "test" / "loop").symlink_to(".")
    (root / "test" / "@eaDir").mkdir()
    assert len(open_dataset(root, "train")) == 3
    test = open_dataset(root, "test")
    assert isinstance(test, MVTecAD) == masks
    assert sorted(test.labels) == [0, 0, 0, 1, 1, 1]
    assert passed(test, root) == {"test/@eaDir": "system folder", "test/loop": "link to a folder around it"}


def test_training_folder_ignores_system_folders_beside_it(tmp_path: Path) -> None:
    for name in ("good/0.png", "@eaDir/0.png", "__MACOSX/0.png"):
        save_gray(tmp_path / name)
    (tmp_path / "1.cr2").touch()
    dataset = open_dataset(tmp_path, "train")
    assert relative(dataset, tmp_path) == ["good/0.png"]
    assert sorted(passed(dataset, tmp_path)) == ["1.cr2", "@eaDir", "__MACOSX"]


def test_prediction_of_a_data_set_lists_what_is_beside_its_test_images(tmp_path: Path) -> None:
    for name in ("train/good/0.png", "test/good/0.png", "more/0.png", "1.png"):
        save_gray(tmp_path / name)
    dataset = open_dataset(tmp_path, "predict")
    assert relative(dataset, tmp_path) == ["test/good/0.png"]
    assert passed(dataset, tmp_path) == dict.fromkeys(("train", "more", "1.png"), "beside test/")


def test_unreadable_system_folder_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_gray(tmp_path / "a.png")
    (tmp_path / "lost+found").mkdir()
    listing = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert len(ImageFolder(tmp_path)) == 1
