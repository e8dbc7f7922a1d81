"""Several categories as one data set, in all layouts that have categories."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data_cases import SHARED, fails, relative, save_gray, save_index_mask
from semflow.data import Categories, ImageDataset, MVTecLOCO, Record, categories_in, open_dataset
from semflow.errors import ConfigError, DataError

NAMES = ("01", "02")


def folders(root: Path, good: str, bad: str, train: str = "train", test: str = "test", suffix: str = "_mask") -> None:
    """Write two categories of folders; the second has another size, and more images."""
    for count, name in enumerate(NAMES, 2):
        for k in range(count):
            save_gray(root / name / train / good / f"{k:03}.png", 10 * count + k, (12 * count, 8))
        save_gray(root / name / test / good / "000.png", 10 * count, (12 * count, 8))
        save_gray(root / name / test / bad / "001.png", 200, (12 * count, 8))
        masks = root / name / ("test_public/ground_truth" if test == "test_public" else "ground_truth") / bad
        save_index_mask(masks / f"001{suffix}.png", (255, 0), (12 * count, 8))


def mvtec(root: Path) -> None:
    folders(root, "good", "hole")


def mvtec_ad_2(root: Path) -> None:
    folders(root, "good", "bad", test="test_public")


def btad(root: Path) -> None:
    folders(root, "ok", "ko", suffix="")


def loco(root: Path) -> None:
    folders(root, "good", "logical_anomalies")
    for name in NAMES:
        masks = root / name / "ground_truth" / "logical_anomalies"
        (masks / "001").mkdir()
        (masks / "001_mask.png").rename(masks / "001" / "000.png")
        rows = [{"defect_name": "x", "pixel_value": 255, "saturation_threshold": 1, "relative_saturation": True}]
        (root / name / "defects_config.json").write_text(json.dumps(rows))


def visa(root: Path) -> None:
    lines = ["object,split,label,image,mask"]
    for count, name in enumerate(NAMES, 2):
        for k in range(count + 1):
            image = save_gray(root / name / f"Data/Images/Normal/{k:03}.JPG", 10 * count + k, (12 * count, 8))
            split = "train" if k < count else "test"
            lines.append(f"{name},{split},normal,{image.relative_to(root).as_posix()},")
        image = save_gray(root / name / "Data/Images/Anomaly/000.JPG", 200, (12 * count, 8))
        mask = save_index_mask(root / name / "Data/Masks/Anomaly/000.png", (1, 0), (12 * count, 8))
        lines.append(f"{name},test,anomaly,{image.relative_to(root).as_posix()},{mask.relative_to(root).as_posix()}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines))


def real_iad(root: Path) -> None:
    for count, name in enumerate(NAMES, 2):
        train = [{"image_path": f"OK/{k}_OK_C1_.jpg", "anomaly_class": "OK"} for k in range(count)]
        test = [{"image_path": "OK/9_OK_C1_.jpg", "anomaly_class": "OK"}]
        test.append({"image_path": "NG/9_NG_C1_.jpg", "anomaly_class": "HS", "mask_path": "NG/9_NG_C1_mask.png"})
        for row in (*train, *test):
            save_gray(root / "realiad_1024" / name / row["image_path"], 10 * count, (12 * count, 8))
        save_index_mask(root / "realiad_1024" / name / "NG/9_NG_C1_mask.png", (255, 0), (12 * count, 8))
        file = root / "realiad_jsons" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"train": train, "test": test}))


def shanghaitech(root: Path) -> None:
    for count, name in enumerate((*NAMES, "13"), 2):
        for k in range(count):
            save_gray(root / f"training/frames/{name}_001/{k:03}.jpg", 10 * count + k, (12 * count, 8))
        if name == "13":
            continue  # it has no test clips
        masks = np.zeros((2, 8, 12 * count), np.uint8)
        masks[1, :, : 6 * count] = 1
        for k in range(2):
            save_gray(root / f"testing/frames/{name}_0014/{k:03}.jpg", 10 * count + k, (12 * count, 8))
        for folder, content in (("test_pixel_mask", masks), ("test_frame_mask", np.array([0, 1], np.int8))):
            (root / "testing" / folder).mkdir(exist_ok=True)
            np.save(root / "testing" / folder / f"{name}_0014.npy", content)


LAYOUTS: list[Callable[[Path], None]] = [mvtec, mvtec_ad_2, btad, loco, visa, real_iad, shanghaitech]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_all_categories_of_a_layout_follow_each_other(layout: Callable[[Path], None], tmp_path: Path) -> None:
    layout(tmp_path)
    third = ("13",) if layout is shanghaitech else ()
    for split, names, counts in (("train", (*NAMES, *third), (2, 3, 4)), ("test", NAMES, (2, 2))):
        assert categories_in(tmp_path, split) == [*names]
        whole = open_dataset(tmp_path, split, (8, 16), categories="all")
        assert isinstance(whole, Categories)
        assert whole.categories == tuple(name for name, n in zip(names, counts, strict=False) for _ in range(n))
        start = 0
        for name in names:
            part = open_dataset(tmp_path, split, (8, 16), category=name)
            assert type(whole.parts[name]) is type(part)
            assert whole.paths[start : start + len(part)] == part.paths
            for k in range(len(part)):
                a, b = whole[start + k], part[k]
                assert torch.equal(a.image, b.image)
                assert torch.equal(a.anomaly_mask, b.anomaly_mask)
                assert (a.label, a.path) == (b.label, b.path)
            start += len(part)
        assert len(whole) == start
        assert whole.passed_over == tuple(item for part in whole.parts.values() for item in part.passed_over)
        one = open_dataset(tmp_path, split, (8, 16), categories=["02"])
        assert (set(one.categories), one.paths) == ({"02"}, open_dataset(tmp_path, split, category="02").paths)


def test_the_order_of_names_is_kept_and_other_folders_are_named(tmp_path: Path) -> None:
    mvtec(tmp_path)
    save_gray(tmp_path / "notes" / "sketch.png")
    (tmp_path / "empty").mkdir()
    for split in ("train", "test"):
        whole = open_dataset(tmp_path, split, 8, categories=("02", "01"))
        assert dict.fromkeys(whole.categories) == dict.fromkeys(("02", "01"))
        assert relative(whole, tmp_path)[0].startswith("02/")
        assert whole.passed_over == ()
        (extra,) = open_dataset(tmp_path, split, 8, categories="all").passed_over
        assert extra.path == tmp_path / "notes"
        assert "no category" in extra.reason
    save_gray(tmp_path / "plain" / "good" / "0.png")  # has neither train/ nor test/, but can be named
    assert len(open_dataset(tmp_path, "train", 8, categories=["plain", "01"])) == 3


def test_wrong_names_and_folders_are_refused(tmp_path: Path) -> None:
    mvtec(tmp_path)
    fails(lambda: open_dataset(tmp_path, categories=["01", "03"]), tmp_path, "category 03", "01, 02")
    for names, found in (((), "none"), (("01", "02", "01"), "01 twice"), (("all", "01"), "all beside others")):
        with pytest.raises(ConfigError, match=f"categories must be different names, or all alone, but got {found}"):
            open_dataset(tmp_path, categories=names)
    with pytest.raises(ConfigError, match="category must be None if categories are given, but got '01'"):
        open_dataset(tmp_path, category="01", categories="all")
    with pytest.raises(ConfigError, match="categories must be None with split predict"):
        open_dataset(tmp_path, "predict", categories="all")
    fails(lambda: open_dataset(tmp_path / "01", categories="all"), tmp_path / "01", "single category", "leave the")
    fails(lambda: open_dataset(tmp_path / "x", categories="all"), tmp_path / "x", "no such folder")
    good = tmp_path / "01" / "train"
    fails(lambda: open_dataset(good, categories="all"), good, "but got good; name the categories")
    for path in (tmp_path / "02" / "train" / "good").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="02/train must contain images"):
        open_dataset(tmp_path, categories="all")


def test_classes_of_cifar_10_are_no_categories_of_one_model(tmp_path: Path) -> None:
    batch = {b"data": np.zeros((10, 3072), np.uint8), b"labels": list(range(10))}
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    assert categories_in(tmp_path) == []
    for names in ("all", ["cat", "dog"]):
        with pytest.raises(ConfigError, match="categories must be None for CIFAR-10"):
            open_dataset(tmp_path, categories=names)


def test_parts_must_be_read_in_the_same_way() -> None:
    def part(**options: object) -> ImageDataset:
        return ImageDataset([Record(Path("a.png"), 0)], **options)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="parts must be at least one category, but got none"):
        Categories({})
    with pytest.raises(ConfigError, match="parts must have one image_size, but got 8 and 16 of b"):
        Categories({"a": part(image_size=8), "b": part(image_size=16)})
    with pytest.raises(ConfigError, match="parts must have one resize, but got stretch and pad of b"):
        Categories({"a": part(), "b": part(resize="pad")})


def test_images_are_kept_decoded_if_those_of_the_parts_are(tmp_path: Path) -> None:
    mvtec(tmp_path)
    for cache in (True, False):
        found = open_dataset(tmp_path, "train", 8, categories="all", cache=cache)
        assert found.cache is cache
        assert torch.equal(found[0].image, found[0].image)


def test_regions_are_those_of_all_parts(tmp_path: Path) -> None:
    root, masks = tmp_path / "data", tmp_path / "masks"
    mvtec(root)
    for path in root.glob("*/t*/*/*.png"):
        save_index_mask(masks / path.relative_to(root), (255, 0), Image.open(path).size)
    whole = open_dataset(root, "test", 8, categories="all", regions=masks)
    assert whole.shape == whole.parts["02"].shape == (4, 8, 8)
    assert torch.equal(whole[2].image, whole.parts["02"][0].image)
    assert whole[2].image[-1].mean() == 0.5


def test_loco_keeps_its_saturations_by_category(tmp_path: Path) -> None:
    loco(tmp_path)
    whole = open_dataset(tmp_path, "test", 8, categories="all")
    for part in whole.parts.values():
        assert isinstance(part, MVTecLOCO)
        assert len(part.defects(part.paths[1])) == 1


@pytest.mark.skipif(not (SHARED / "mvtec" / "screw").is_dir(), reason="needs MVTec AD")
def test_real_categories() -> None:
    whole = open_dataset(SHARED / "mvtec", "train", 32, categories="all")
    assert {name: len(part) for name, part in whole.parts.items()} == {"screw": 320, "toothbrush": 48}
