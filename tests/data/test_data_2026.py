"""MVTec AD 2, MVTec LOCO AD, Real-IAD and MPDD: their layouts, splits and traps, on small trees."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data_cases import fails, left_half_is_anomalous, relative, save_gray, save_index_mask
from semflow.data import MVTecAD, MVTecAD2, MVTecLOCO, RealIAD, open_dataset
from semflow.errors import ConfigError
from semflow.metrics import spro
from semflow.training import check_labels

# --- MVTec AD 2


@pytest.fixture
def can(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec_ad_2" / "can"
    for part, count in (("train/good", 3), ("validation/good", 2), ("test_public/good", 2), ("test_public/bad", 2)):
        for k in range(count):
            save_gray(root / part / f"{k:03}_regular.png")
    for k in range(2):
        save_index_mask(root / f"test_public/ground_truth/bad/{k:03}_regular_mask.png", (255, 0))
        save_gray(root / f"test_private/{k:03}_regular.png")
        save_gray(root / f"test_private_mixed/{k:03}_mixed.png")
    save_gray(root.parent / "rice" / "train" / "good" / "000_regular.png")
    return root


def test_mvtec_ad_2_has_labels_and_masks_only_where_published(can: Path) -> None:
    for split, labels, folders in (
        ("train", (0, 0, 0), {"train/good"}),
        ("validation", (0, 0), {"validation/good"}),
        ("test", (1, 1, 0, 0), {"test_public/good", "test_public/bad"}),
        ("private", (-1, -1), {"test_private"}),
        ("private_mixed", (-1, -1), {"test_private_mixed"}),
    ):
        dataset = MVTecAD2(can.parent, split, 8, category="can")
        assert dataset.labels == labels
        assert {Path(name).parent.as_posix() for name in relative(dataset, can)} == folders
        assert dataset.has_masks == (not split.startswith("private"))
        assert [dataset[k].anomaly_mask is None for k in range(len(dataset))] == [not dataset.has_masks] * len(dataset)
        assert relative(MVTecAD2(can, split, 8), can) == relative(dataset, can)
    test = MVTecAD2(can, "test", 8)
    assert [left_half_is_anomalous(test, k) for k in range(4)] == [True, True, False, False]


def test_open_dataset_never_takes_the_masks_of_mvtec_ad_2_for_images(can: Path) -> None:
    for path, options in ((can, {}), (can.parent, {"category": "can"}), (can / "test_public", {})):
        test = open_dataset(path, "test", 8, **options)
        check_labels(test)
        assert test.labels == (1, 1, 0, 0)
        assert left_half_is_anomalous(test, 0)
        assert [(item.path.name, item.reason) for item in test.passed_over] == [("ground_truth", "masks")]
    for path in (can, can / "test_public"):
        scored = open_dataset(path, "predict", 8)
        assert scored.labels == (-1,) * 4
        assert all("ground_truth" not in name for name in scored.paths)
        assert "ground_truth" in {item.path.name for item in scored.passed_over}
    fails(lambda: open_dataset(can.parent, "predict", 8), can.parent, "one category, but got the categories can", can)
    assert len(open_dataset(can / "test_private", "predict", 8)) == 2
    assert open_dataset(can, "train", 8).labels == (0,) * 3
    assert open_dataset(can / "validation", "train", 8).labels == (0,) * 2


def test_mvtec_ad_2_reports_what_is_missing(can: Path) -> None:
    (can / "test_public/ground_truth/bad/001_regular_mask.png").unlink()
    fails(lambda: MVTecAD2(can, "test", 8), can / "test_public/bad/001_regular.png", "001_regular_mask.png")
    shutil.rmtree(can / "test_public" / "ground_truth")
    fails(lambda: MVTecAD2(can, "test", 8), can / "test_public" / "ground_truth", "folder of the masks")
    shutil.rmtree(can / "test_private")
    fails(lambda: MVTecAD2(can, "private", 8), can, "a folder test_private/")
    fails(lambda: MVTecAD2(can.parent, "train", 8), can.parent, "categories can, rice")
    with pytest.raises(ConfigError, match="split must be"):
        MVTecAD2(can, "public", 8)  # type: ignore[arg-type]


# --- MVTec LOCO AD


def mask_file(path: Path, boxes: dict[int, tuple[slice, slice]], size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    for level, box in boxes.items():
        pixels[box] = level
    Image.fromarray(pixels).save(path)


LEFT, TOP, CORNER = (slice(None), slice(0, 6)), (slice(0, 4), slice(None)), (slice(6, 8), slice(9, 12))
CONFIG = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 12, "relative_saturation": False},
    {"defect_name": "swapped", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
    {"defect_name": "dirt", "pixel_value": 253, "saturation_threshold": 1, "relative_saturation": True},
]


@pytest.fixture
def box(tmp_path: Path) -> Path:
    root = tmp_path / "loco" / "box"
    for part, count in (("train/good", 2), ("validation/good", 1), ("test/good", 2)):
        for k in range(count):
            save_gray(root / part / f"{k:03}.png")
    for kind in ("logical", "structural"):
        for k in range(2):
            save_gray(root / f"test/{kind}_anomalies/{k:03}.png")
    truth = root / "ground_truth"
    mask_file(truth / "logical_anomalies/000/000.png", {255: LEFT})
    mask_file(truth / "logical_anomalies/000/001.png", {254: TOP})
    mask_file(truth / "logical_anomalies/001/000.png", {255: CORNER})
    mask_file(truth / "structural_anomalies/000/000.png", {253: CORNER})
    mask_file(truth / "structural_anomalies/001/000.png", {253: LEFT})
    (root / "defects_config.json").write_text(json.dumps(CONFIG))
    return root


def test_loco_unites_the_masks_of_an_image(box: Path) -> None:
    assert MVTecLOCO(box.parent, "train", None, category="box").labels == (0, 0)
    assert MVTecLOCO(box, "validation", None).labels == (0,)
    for test in (MVTecLOCO(box, "test", None), open_dataset(box, "test", None)):
        assert isinstance(test, MVTecLOCO)
        check_labels(test)
        assert test.labels == (0, 0, 1, 1, 1, 1)
        expected = torch.zeros(8, 12, dtype=torch.bool)
        expected[:, :6] = expected[:4] = True
        assert torch.equal(test[2].anomaly_mask, expected)
        assert not test[0].anomaly_mask.any()
        test.verify()
    for kind in ("logical", "structural"):
        chosen = MVTecLOCO(box, "test", 8, anomalies=kind)
        assert {Path(path).parent.name for path in chosen.paths} == {"good", f"{kind}_anomalies"}


def test_loco_defects_have_the_saturations_of_their_kinds(box: Path) -> None:
    test = MVTecLOCO(box, "test", None)
    areas = [[(int(d.mask.sum()), d.saturation) for d in test.defects(path)] for path in test.paths]
    # 12 pixels of 48; half of 48; an area below its threshold; all of a relative one
    assert areas == [[], [], [(48, 12.0), (48, 24.0)], [(6, 6.0)], [(6, 6.0)], [(48, 48.0)]]
    half = MVTecLOCO(box, "test", (4, 6))
    smaller = [[(int(d.mask.sum()), d.saturation) for d in half.defects(path)] for path in half.paths]
    assert smaller[2] == [(12, 3.0), (12, 6.0)]
    padded = MVTecLOCO(box, "test", 12, resize="pad")
    assert padded.defects(padded.paths[2])[0].mask.shape == (12, 12)
    assert np.array_equal(padded.defects(padded.paths[2])[0].mask, padded[2].anomaly_mask.numpy() * LEFT_OF_12)
    maps = torch.zeros(6, 8, 12)
    maps[2, 4:6, :6] = 1  # twelve pixels saturate the first defect; the second is not found
    maps[3:] = torch.stack([test[k].anomaly_mask for k in (3, 4, 5)]).float()
    found = spro(maps, [test.defects(path) for path in test.paths], 0.05)
    assert found == pytest.approx((4 + 0.05 / 2) / 5, abs=1e-9)


LEFT_OF_12 = np.arange(12) < 6


def test_loco_reports_broken_masks_and_thresholds(box: Path) -> None:
    config, test = box / "defects_config.json", MVTecLOCO(box, "test", 8)
    path = test.paths[2]
    for content, message in (
        ("[", "JSONDecodeError"),
        ("[3]", "TypeError"),
        (json.dumps([{"pixel_value": 255}]), "KeyError: 'saturation_threshold'"),
        (
            json.dumps([{**CONFIG[0], "saturation_threshold": 0}]),
            "saturation_threshold must be a positive number, but got 0",
        ),
        (json.dumps([{**CONFIG[0], "saturation_threshold": "many"}]), "ValueError"),
    ):
        config.write_text(content)
        fails(lambda: test.defects(path), config, message, "pixel_value, saturation_threshold and relative")
    config.write_text(json.dumps(CONFIG[:1]))
    fails(lambda: test.defects(path), config, "an entry for pixel value 254", "001.png")
    config.unlink()
    fails(lambda: MVTecLOCO(box, "test", 8).defects(path), config, "no such file")
    assert test[2].anomaly_mask.any()  # which need no thresholds
    truth = box / "ground_truth" / "structural_anomalies"
    save_gray(truth / "000" / "001.png", 253, (6, 8))
    fails(lambda: MVTecLOCO(box, "test", 8), truth / "000" / "001.png", "12 x 8 pixels", "6 x 8")
    shutil.rmtree(truth / "000")
    fails(lambda: MVTecLOCO(box, "test", 8), truth / "000", "folder of the masks", "000.png")
    (truth / "000").mkdir()
    fails(lambda: MVTecLOCO(box, "test", 8), truth / "000", "got none")
    with pytest.raises(ConfigError, match="anomalies must be"):
        MVTecLOCO(box, "test", 8, anomalies="good")  # type: ignore[arg-type]


# --- Real-IAD


def row(kind: str, name: str, mask: bool = False) -> dict[str, Any]:
    folder = "OK" if "_OK_" in name else "NG/HS"
    path = f"{folder}/S0001/{name}"
    masked = path.replace(".jpg", "_mask.png") if mask else None
    return {"category": "usb", "anomaly_class": kind, "image_path": f"{path}", "mask_path": masked}


@pytest.fixture
def iad(tmp_path: Path) -> Path:
    """Two training parts and two test parts of five views; of the defective one, three views show the defect."""
    root = tmp_path / "Real-IAD"
    train = [row("OK", f"usb_{n:04}_OK_C{view}_2023.jpg") for n in (1, 2) for view in range(1, 6)]
    test = [row("OK", f"usb_0003_OK_C{view}_2023.jpg") for view in range(1, 6)]
    test += [row("HS" if v > 2 else "OK", f"usb_0004_NG_HS_C{v}_2023.jpg", v > 2) for v in range(1, 6)]
    for item in (*train, *test):
        save_gray(root / "realiad_1024" / "usb" / item["image_path"])
        if item["mask_path"]:
            save_index_mask(root / "realiad_1024" / "usb" / item["mask_path"], (255, 0))
    write_splits(root, "realiad_jsons", train, test)
    write_splits(
        root, "realiad_jsons_sv", *([one for one in rows if "_C1_" in one["image_path"]] for rows in (train, test))
    )
    write_splits(root, "realiad_jsons_fuiad_0.1", [*train, test[-1]], test[:-1])
    return root


def write_splits(root: Path, protocol: str, train: list[Any], test: list[Any]) -> Path:
    file = root / protocol / "usb.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = {"normal_class": "OK", "prefix": "usb/"}
    file.write_text(json.dumps({"meta": meta, "train": train, "test": test}))
    return file


def test_real_iad_labels_views_by_the_split_and_not_by_their_folder(iad: Path) -> None:
    train, test = RealIAD(iad, "train", 8, category="usb"), RealIAD(iad, "test", 8, category="usb")
    assert train.labels == (0,) * 10
    assert test.labels == (0,) * 7 + (1,) * 3
    assert ["NG" in Path(path).parts for path in test.paths] == [False] * 5 + [True] * 5
    assert [left_half_is_anomalous(test, k) for k in range(10)] == [False] * 7 + [True] * 3
    assert test.passed_over == train.passed_over == ()
    opened = open_dataset(iad, "test", 8, category="usb")
    assert (opened.paths, opened.labels) == (test.paths, test.labels)
    fails(lambda: open_dataset(iad, "test", 8), iad, "with a category, but got none for the layout of RealIAD")


def test_views_of_real_iad_share_their_part(iad: Path) -> None:
    test = RealIAD(iad, "test", 8, category="usb")
    assert len(test) == 10
    parts = [test.part(path) for path in test.paths]
    assert parts == [parts[0]] * 5 + [parts[5]] * 5
    assert parts[0] != parts[5]


def test_masks_of_real_iad_are_not_predicted(iad: Path) -> None:
    first, *_ = sorted(iad.rglob("*_mask.png"))
    first.rename(first.with_name(first.name.replace("_mask", "")))  # some copies have no such ending
    masks = {path.name for path in iad.rglob("*.png")}
    assert len(masks) == 3
    for root in (iad, iad / "realiad_1024", iad / "realiad_1024/usb", iad / "realiad_1024/usb/NG"):
        scored = open_dataset(root, "predict", 8)
        assert {Path(path).suffix for path in scored.paths} == {".jpg"}
        assert {item.path.name for item in scored.passed_over} == masks
        assert not any(item.unread for item in scored.passed_over)
    save_gray(iad / "other" / "part_NG_C1_1.jpg")
    save_gray(iad / "other" / "part_NG_x.png")  # beside no image of its name
    assert len(open_dataset(iad / "other", "predict", 8)) == 2


def test_real_iad_views_and_protocols(iad: Path) -> None:
    assert RealIAD(iad, "test", 8, category="usb", view=4).labels == (0, 1)
    with pytest.raises(ConfigError, match="view must be 1 to 5, but got 6"):
        RealIAD(iad, "test", 8, category="usb", view=6)
    single = RealIAD(iad, "train", 8, category="usb", protocol="realiad_jsons_sv")
    assert all("_C1_" in path for path in single.paths)
    assert len(single) == 2
    noisy = RealIAD(iad, "train", 8, category="usb", protocol="realiad_jsons_fuiad_0.1")
    assert noisy.labels == (-1,) * 11
    assert noisy[0].anomaly_mask is None
    assert RealIAD(iad, "test", 8, category="usb", protocol="realiad_jsons_fuiad_0.1").labels == (0,) * 7 + (1,) * 2
    moved = iad / "realiad_jsons.zip.folder"
    (iad / "realiad_jsons").rename(moved)
    (iad / "realiad_jsons").mkdir()
    moved.rename(iad / "realiad_jsons" / "realiad_jsons")  # unpacked into a folder of the archive's name
    assert len(RealIAD(iad, "train", 8, category="usb")) == 10
    save_gray(iad / "realiad_1024/usb/OK/S0009/usb_0009_OK_C1_2023.jpg")
    (extra,) = RealIAD(iad, "train", 8, category="usb").passed_over
    assert extra.path.name == "usb_0009_OK_C1_2023.jpg"
    assert extra.reason == "not in usb.json"


def test_real_iad_chooses_the_resolution(iad: Path) -> None:
    shutil.copytree(iad / "realiad_1024", iad / "realiad_256")
    assert "realiad_1024" in RealIAD(iad, category="usb").paths[0]
    assert "realiad_256" in RealIAD(iad, category="usb", resolution="256").paths[0]
    (iad / "realiad_1024").rename(iad / "realiad_512")
    fails(lambda: RealIAD(iad, category="usb"), iad, "realiad_256, realiad_512")
    fails(lambda: RealIAD(iad, category="usb", resolution="raw"), iad / "realiad_raw", "of resolution raw")
    shutil.rmtree(iad / "realiad_512")
    assert "realiad_256" in RealIAD(iad, category="usb").paths[0]
    shutil.rmtree(iad / "realiad_256")
    fails(lambda: RealIAD(iad, category="usb"), iad, "but got none")


def test_real_iad_reports_broken_splits_and_missing_files(iad: Path) -> None:
    file = iad / "realiad_jsons" / "usb.json"
    whole = json.loads(file.read_text())
    fails(lambda: RealIAD(iad, category="toy"), file.with_name("toy.json"), "usb beside it")
    fails(lambda: RealIAD(iad, category="usb", protocol="sv"), iad / "sv" / "usb.json", "no others beside it")
    for content, message in (
        ("{", "JSON file"),
        ("[]", "no rows"),
        ('{"train": [], "test": []}', "no rows"),
        ('{"train": [{"image_path": "a.jpg"}], "test": []}', "rows without them"),
        (json.dumps({**whole, "train": []}), "must have train images, but got none of 0"),
        (json.dumps({**whole, "train": [row("OK", "../a_OK_C1_.jpg")]}), "must name files in"),
    ):
        file.write_text(content)
        fails(lambda: RealIAD(iad, category="usb"), file, message)
    file.write_text(json.dumps({**whole, "test": [{**row("HS", "b_NG_C1_.jpg"), "mask_path": None}]}))
    fails(lambda: RealIAD(iad, "test", category="usb"), file, "must name a mask of NG/HS/S0001/b_NG_C1_.jpg")
    file.write_text(json.dumps({**whole, "train": whole["train"][:1] * 2}))
    fails(lambda: RealIAD(iad, category="usb"), iad / "realiad_1024/usb" / whole["train"][0]["image_path"], "twice")
    file.write_text(json.dumps(whole))
    gone = iad / "realiad_1024" / "usb" / whole["test"][-1]["mask_path"]
    gone.unlink()
    fails(lambda: RealIAD(iad, "test", category="usb"), gone, "named in", "no such file")
    shutil.rmtree(iad / "realiad_1024" / "usb")
    fails(lambda: RealIAD(iad, category="usb"), iad / "realiad_1024" / "usb", "a category of Real-IAD")


# --- MPDD


def test_mpdd_has_the_layout_of_mvtec_ad(tmp_path: Path) -> None:
    root = tmp_path / "MPDD" / "connector"
    for k in range(2):
        save_gray(root / f"train/good/{k:03}.png")
        save_gray(root / f"test/good/{k:03}.png")
        save_gray(root / f"test/parts_mismatch/{k:03}.png")
        save_index_mask(root / f"ground_truth/parts_mismatch/{k:03}_mask.png", (255, 0))
    for test in (
        MVTecAD(tmp_path / "MPDD", "test", 8, category="connector"),
        open_dataset(tmp_path / "MPDD", "test", 8, category="connector"),
    ):
        assert test.labels == (0, 0, 1, 1)
        assert [left_half_is_anomalous(test, k) for k in range(4)] == [False, False, True, True]
