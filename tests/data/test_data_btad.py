"""BTAD: folders ok and ko, and masks in other formats than their images."""

import shutil
from pathlib import Path

import pytest

from helpers.data_cases import fails, left_half_is_anomalous, relative, save_gray, save_index_mask
from semflow.data import BTAD, ImageDataset, open_dataset
from semflow.errors import ConfigError


@pytest.fixture
def btad(tmp_path: Path) -> Path:
    root = tmp_path / "BTech_Dataset_transformed"
    for product, ending, mask_ending in (("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")):
        for k in range(3):
            save_gray(root / product / "train" / "ok" / f"{k:04}{ending}", 50 + k)
        for k in range(2):
            save_gray(root / product / "test" / "ok" / f"{k:04}{ending}", 90)
            save_gray(root / product / "test" / "ko" / f"{k:04}{ending}", 200)
            save_index_mask(root / product / "ground_truth" / "ko" / f"{k:04}{mask_ending}", (255, 0))
    return root


@pytest.mark.parametrize("product", ["01", "02", "03"])
def test_btad_opens_both_splits(btad: Path, product: str) -> None:
    train, test = BTAD(btad, "train", 8, category=product), BTAD(btad, "test", 8, category=product)
    ending = ".png" if product == "02" else ".bmp"
    assert relative(train, btad / product) == [f"train/ok/{k:04}{ending}" for k in range(3)]
    assert train.labels == (0, 0, 0)
    names = [f"test/{kind}/{k:04}{ending}" for kind in ("ok", "ko") for k in range(2)]
    assert relative(test, btad / product) == names
    assert test.labels == (0, 0, 1, 1)
    assert test.has_masks
    assert [left_half_is_anomalous(test, k) for k in range(4)] == [False, False, True, True]
    assert BTAD(btad / product, "test", 8).paths == test.paths
    assert test[3].image.unique().tolist() == [pytest.approx(200 / 255)]


def test_btad_requires_a_category_if_there_are_several(btad: Path) -> None:
    fails(lambda: BTAD(btad), btad, "got the categories 01, 02, 03", f"name {btad / '01'}")
    fails(lambda: open_dataset(btad), btad, "got the categories 01, 02, 03")
    with pytest.raises(ConfigError, match="split must be train or test, but got 'val'"):
        BTAD(btad, "val", category="01")  # type: ignore[arg-type]


def test_btad_reports_missing_files_and_wrong_mask_sizes(btad: Path, tmp_path: Path) -> None:
    fails(lambda: BTAD(tmp_path / "none"), tmp_path / "none", "no such folder", "check the path")
    shutil.rmtree(btad / "03")
    fails(lambda: BTAD(btad, category="03"), btad / "03", "the category 03", "got only 01, 02", "completely")
    one = btad / "01"
    (one / "ground_truth" / "ko" / "0001.png").unlink()
    fails(lambda: BTAD(one, "test"), one / "test/ko/0001.bmp", one / "ground_truth/ko/0001.png", "test/ok")
    shutil.rmtree(one / "ground_truth")
    fails(lambda: BTAD(one, "test"), one / "ground_truth/ko", "the masks of", "add the masks")
    shutil.rmtree(one / "test" / "ko")
    fails(lambda: BTAD(one, "test"), one / "test/ko", "anomalous images", "unpack the dataset completely")
    shutil.rmtree(one / "test")
    fails(lambda: BTAD(one, "test"), one / "test/ok", "the normal test images of BTAD")
    assert len(BTAD(one, "train")) == 3
    two = btad / "02"
    save_index_mask(two / "ground_truth/ko/0000.png", size=(8, 12))
    fails(lambda: BTAD(two, "test"), two / "ground_truth/ko/0000.png", "12 x 8 pixels, but got 8 x 12")


def test_btad_reports_packed_archives(btad: Path, tmp_path: Path) -> None:
    archive = tmp_path / "btad.zip"
    archive.write_bytes(b"PK")
    fails(lambda: BTAD(archive), archive, "a packed archive", "unpack it")
    fails(lambda: BTAD(tmp_path / "btad"), tmp_path / "btad", f"the archive btad.zip in {tmp_path}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "btad.tar.gz").write_bytes(b"")
    fails(lambda: BTAD(tmp_path / "empty"), tmp_path / "empty", "the packed archive btad.tar.gz")
    fails(lambda: BTAD(btad / "01/train/ok/0000.bmp"), btad / "01/train/ok/0000.bmp", "got a file")


def test_open_dataset_recognizes_btad(btad: Path) -> None:
    one = btad / "01"
    for split in ("train", "test"):
        opened = open_dataset(one, split, 8)
        assert isinstance(opened, BTAD)
        assert opened.paths == BTAD(one, split, 8).paths
    predict = open_dataset(one, "predict", 8)
    assert set(predict.labels) == {-1}
    assert sorted(relative(predict, one)) == sorted(relative(BTAD(one, "test", 8), one))
    shutil.rmtree(one / "ground_truth")  # like MVTec AD: labels without masks
    unmasked = open_dataset(one, "test", 8)
    assert type(unmasked) is ImageDataset
    assert (unmasked.labels, unmasked.has_masks) == ((1, 1, 0, 0), False)


def test_open_dataset_opens_mvtec_with_a_defect_type_named_ko(tmp_path: Path) -> None:
    for name in ("train/good/0.png", "test/good/0.png", "test/ko/0.png"):
        save_gray(tmp_path / name)
    save_index_mask(tmp_path / "ground_truth/ko/0_mask.png")
    assert type(open_dataset(tmp_path, "test", 8)).__name__ == "MVTecAD"
    assert open_dataset(tmp_path, "test", 8).labels == (0, 1)
