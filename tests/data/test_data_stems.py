"""Shared masks, and two masks of one image, raise an error that names both files."""

from pathlib import Path

import pytest

from helpers.data_cases import fails, save_gray, save_index_mask
from semflow.data import BTAD, MVTecAD, ShanghaiTech, VisA


def mvtec(root: Path) -> MVTecAD:
    return MVTecAD(root, "test", 8)


@pytest.mark.parametrize("masks", [("0.png", "0.bmp"), ("0_mask.png", "0_mask.tif"), ("0_mask.png", "0.png")])
def test_mvtec_rejects_two_masks_of_one_image(tmp_path: Path, masks: tuple[str, str]) -> None:
    save_gray(tmp_path / "test/hole/0.png")
    for name in masks:
        save_index_mask(tmp_path / "ground_truth/hole" / name)
    fails(lambda: mvtec(tmp_path), tmp_path / "test/hole/0.png", *masks, "remove one")


def test_mvtec_rejects_two_images_with_one_mask(tmp_path: Path) -> None:
    for name in ("0.png", "0.bmp"):
        save_gray(tmp_path / "test/hole" / name)
    mask = save_index_mask(tmp_path / "ground_truth/hole/0_mask.png")
    fails(lambda: mvtec(tmp_path), mask, "hole/0.bmp", "hole/0.png", "rename one")


def test_mvtec_accepts_one_stem_in_two_folders(tmp_path: Path) -> None:
    for name in ("hole/a/0", "hole/b/0", "cut/0"):
        save_gray(tmp_path / "test" / f"{name}.png")
        save_index_mask(tmp_path / "ground_truth" / f"{name}_mask.png")
    for name in ("0.png", "0.bmp"):  # good images have no masks
        save_gray(tmp_path / "test/good" / name)
    assert len(mvtec(tmp_path)) == 5


def test_btad_rejects_two_images_with_one_mask_and_two_masks(tmp_path: Path) -> None:
    save_gray(tmp_path / "test/ok/1.png")
    save_gray(tmp_path / "test/ko/0.png")
    save_index_mask(tmp_path / "ground_truth/ko/0.png")
    second = save_gray(tmp_path / "test/ko/0.bmp")
    fails(lambda: BTAD(tmp_path, "test"), tmp_path / "ground_truth/ko/0.png", "ko/0.bmp", "ko/0.png")
    second.unlink()
    save_index_mask(tmp_path / "ground_truth/ko/0.bmp")
    fails(lambda: BTAD(tmp_path, "test"), tmp_path / "test/ko/0.png", "ko/0.bmp", "ko/0.png")


def visa(root: Path, *rows: str) -> VisA:
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv/1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows]))
    return VisA(root, "test", 8, category="pcb")


def test_visa_rejects_a_mask_of_two_images_and_an_image_listed_twice(tmp_path: Path) -> None:
    images, masks = "pcb/Data/Images/Anomaly", "pcb/Data/Masks/Anomaly"
    save_gray(tmp_path / "pcb/Data/Images/Normal/9.JPG")
    for name in ("0", "1"):
        save_gray(tmp_path / images / f"{name}.JPG")
    mask = save_index_mask(tmp_path / masks / "0.png")
    row = f"pcb,test,anomaly,{images}/%s.JPG,{masks}/0.png"
    fails(lambda: visa(tmp_path, row % 0, row % 1), mask, "0.JPG", "1.JPG")
    fails(lambda: visa(tmp_path, row % 0, row % 0), tmp_path / images / "0.JPG", "listed once")
    dataset = visa(tmp_path, row % 0)
    assert sorted(item.path.name for item in dataset.passed_over) == ["1.JPG", "9.JPG"]
    assert {item.reason for item in dataset.passed_over} == {"not in 1cls.csv"}


def test_shanghaitech_rejects_two_files_of_one_frame_or_clip(tmp_path: Path) -> None:
    clip = tmp_path / "training/frames/01_001"
    for name in ("0.png", "1.png", "1.jpg"):
        save_gray(clip / name)
    fails(lambda: ShanghaiTech(tmp_path, category="01"), clip, "1.png after 1.jpg")
    (clip / "1.jpg").unlink()
    save_gray(tmp_path / "training/frames/01_001.old" / "0.png")  # no clip
    assert len(ShanghaiTech(tmp_path, category="01")) == 2
    films = tmp_path / "training/videos"
    films.mkdir()
    for name in ("01_001.avi", "01_001.AVI"):
        (films / name).touch()
    if len(list(films.iterdir())) == 2:  # names differ by case
        fails(lambda: ShanghaiTech(tmp_path, category="01"), films, "01_001.AVI and 01_001.avi")
