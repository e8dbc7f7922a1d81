"""Folders of images, the layout of MVTec AD, and the layouts that open_dataset recognizes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from helpers.data_cases import SHARED, fails, relative
from semflow.data import Batch, ImageDataset, ImageFolder, MVTecAD, Record, Sample, collate, open_dataset
from semflow.errors import ConfigError, ShapeError
from semflow.synthesis import SyntheticAnomalies

MVTEC = SHARED / "mvtec"

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Create gray images of 12 x 8 pixels, and masks with a bright left half, at the given relative paths."""

    def make(*names: str, root: str = "part") -> Path:
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 12), len(name), np.uint8)
            if "ground_truth" in name:
                pixels[:, :6], pixels[:, 6:] = 255, 0
            Image.fromarray(pixels).save(path)
        return tmp_path / root

    return make


CATEGORY = (
    *(f"train/good/{k:03}.png" for k in range(4)),
    *(f"test/good/{k:03}.png" for k in range(2)),
    *(f"test/hole/{k:03}.png" for k in range(3)),
    "test/cut/000.png",
    *(f"ground_truth/hole/{k:03}_mask.png" for k in range(3)),
    "ground_truth/cut/000.png",
)


# --- folders


def test_folder_lists_images_recursively_without_hidden_files(tree: Tree) -> None:
    root = tree("b.JPG", "a/2.png", "a/10.PNG", "a.png", "é.bmp", ".hidden.png", ".cache/x.png", "a/.y/z.png")
    (root / "notes.txt").write_text("not an image")
    (root / "folder.png").mkdir()
    dataset = ImageFolder(root, 8)
    names = relative(dataset, root)
    assert names == sorted(names) == ["a.png", "a/10.PNG", "a/2.png", "b.JPG", "é.bmp"]
    assert dataset.labels == (-1,) * 5
    sample = dataset[0]
    assert isinstance(sample, Sample)
    assert sample.image.shape == (1, 8, 8)
    assert sample.image.dtype == torch.float32
    assert sample.label == -1
    assert sample.anomaly_mask is None
    assert sample.path == str(root / "a.png")


def test_folder_of_normal_images_has_empty_masks(tree: Tree) -> None:
    dataset = ImageFolder(tree("0.png"), 8, label=0)
    mask = dataset[0].anomaly_mask
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask.shape == (8, 8)
    assert not mask.any()
    assert ImageFolder(tree("0.png"), 8, label=1)[0].anomaly_mask is None


def test_folder_rejects_missing_and_empty_folders_and_files(tree: Tree, tmp_path: Path) -> None:
    file = tree("0.png") / "0.png"
    (tmp_path / "empty").mkdir()
    fails(lambda: ImageFolder(tmp_path / "empty"), tmp_path / "empty", "but got none")
    fails(lambda: ImageFolder(tmp_path / "missing"), tmp_path / "missing", "no such folder")
    fails(lambda: ImageFolder(file), file, "got a file")
    with pytest.raises(ConfigError, match="image_size"):
        ImageFolder(file.parent, 0)
    with pytest.raises(ConfigError, match="label must be -1, 0 or 1, but got 2"):
        ImageFolder(file.parent, label=2)


def test_dataset_supports_negative_indices_and_rejects_large_ones(tree: Tree) -> None:
    dataset = ImageFolder(tree("0.png", "1.png"), 8)
    assert dataset[-1].path == dataset[1].path
    for index in (2, -3):
        with pytest.raises(IndexError, match="index must be below 2, but got"):
            dataset[index]
    assert len(list(dataset)) == 2


def test_verify_names_the_first_broken_file(tree: Tree) -> None:
    root = tree("0.png", "1.png", "2.png")
    dataset = ImageFolder(root, 8)
    dataset.verify()
    (root / "1.png").write_bytes((root / "1.png").read_bytes()[:50])
    fails(dataset.verify, root / "1.png")


def test_cache_gives_equal_samples_after_files_are_deleted(tree: Tree) -> None:
    root = tree(*CATEGORY)
    plain, cached = MVTecAD(root, "test", 8), MVTecAD(root, "test", 8, cache=True)
    cached.verify()
    expected = [plain[k] for k in range(len(plain))]
    for path in root.rglob("*.png"):
        path.unlink()
    for _ in range(2):  # changing a sample does not change the cache
        for k, sample in enumerate(expected):
            again = cached[k]
            assert torch.equal(again.image, sample.image)
            assert again.anomaly_mask is not None
            assert sample.anomaly_mask is not None
            assert torch.equal(again.anomaly_mask, sample.anomaly_mask)
            again.image.zero_()
            again.anomaly_mask.fill_(True)


@pytest.mark.parametrize("cache", [False, True])
def test_loader_gives_equal_batches_with_workers(tree: Tree, cache: bool) -> None:
    dataset = open_dataset(tree(*CATEGORY), "test", 8, cache=cache)

    def batches(workers: int) -> list[Batch]:
        return list(DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate))

    for one, two in zip(batches(0), batches(2), strict=True):
        assert isinstance(two, Batch)
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert one.anomaly_masks is not None
        assert two.anomaly_masks is not None
        assert torch.equal(one.anomaly_masks, two.anomaly_masks)
        assert one.paths == two.paths


def test_collate_stacks_samples_of_one_size() -> None:
    image, mask = torch.zeros(3, 4, 4), torch.ones(4, 4, dtype=torch.bool)
    batch = collate([Sample(image, 0, mask, "a"), Sample(image + 1, 1, mask, "b")])
    assert batch.images[:, 0, 0, 0].tolist() == [0.0, 1.0]
    assert batch.labels.dtype == torch.int64
    assert batch.anomaly_masks is not None
    assert batch.anomaly_masks.shape == (2, 4, 4)
    assert batch.paths == ("a", "b")
    assert collate([Sample(image, 0, mask, "a"), Sample(image, -1, None, "b")]).anomaly_masks is None
    with pytest.raises(ShapeError, match="at least one"):
        collate([])
    with pytest.raises(ShapeError, match=r"\(3, 4, 4\) \(a\) and \(3, 5, 4\) \(b\)"):
        collate([Sample(image, 0, mask, "a"), Sample(torch.zeros(3, 5, 4), 0, None, "b")])


# --- MVTec AD


def test_mvtec_opens_both_splits(tree: Tree) -> None:
    root = tree(*CATEGORY)
    train, test = MVTecAD(root, "train", 8), MVTecAD(root, "test", 8)
    assert relative(train, root) == [f"train/good/{k:03}.png" for k in range(4)]
    assert train.labels == (0,) * 4
    assert relative(test, root) == [name for name in sorted(CATEGORY) if name.startswith("test")]
    assert test.labels == (1, 0, 0, 1, 1, 1)
    for sample in (test[k] for k in range(6)):
        assert sample.anomaly_mask is not None
        left = sample.anomaly_mask[:, :4]
        assert bool(left.all()) == bool(left.any()) == bool(sample.label)
        assert not sample.anomaly_mask[:, 4:].any()
    assert MVTecAD(root.parent, "test", 8, category=root.name).paths == test.paths


def test_mvtec_reports_missing_masks_on_construction(tree: Tree) -> None:
    root = tree(*CATEGORY)
    (root / "ground_truth/hole/001_mask.png").unlink()
    image = root / "test/hole/001.png"
    for open_it in (lambda: MVTecAD(root, "test"), lambda: open_dataset(root, "test")):
        fails(open_it, image, root / "ground_truth/hole/001_mask.png", "but got none")
    MVTecAD(root, "train")


def test_mvtec_reports_wrong_mask_sizes_on_construction(tree: Tree) -> None:
    root = tree(*CATEGORY)
    mask = root / "ground_truth/cut/000.png"
    Image.new("L", (8, 12)).save(mask)
    fails(lambda: MVTecAD(root, "test"), mask, "12 x 8 pixels, but got 8 x 12")
    mask.write_text("no image")
    fails(lambda: MVTecAD(root, "test"), mask)


def test_mvtec_compares_mask_sizes_after_exif_orientation(tree: Tree) -> None:
    root = tree("test/cut/0.jpg", "ground_truth/cut/0_mask.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (8, 12)).save(root / "test/cut/0.jpg", exif=exif)
    assert MVTecAD(root, "test", 8)[0].label == 1


def test_verify_reports_masks_changed_after_construction(tree: Tree) -> None:
    root = tree(*CATEGORY)
    dataset = MVTecAD(root, "test", 8)
    mask = root / "ground_truth/cut/000.png"
    Image.new("L", (99, 12)).save(mask)
    fails(dataset.verify, mask, "99 x 12")


def test_mvtec_rejects_other_layouts(tree: Tree, tmp_path: Path) -> None:
    root = tree(*CATEGORY)
    fails(lambda: MVTecAD(root.parent), root.parent, "got the categories part", f"name {root}")
    fails(lambda: MVTecAD(tmp_path / "missing"), tmp_path / "missing")
    fails(lambda: MVTecAD(tree("0.png", root="flat")), tmp_path / "flat", "train/")
    loose = tree("test/0.png", "ground_truth/cut/0.png", root="loose")
    fails(lambda: MVTecAD(loose, "test"), loose / "test", "got 0.png directly in it")
    with pytest.raises(ConfigError, match="split must be train or test, but got 'valid'"):
        MVTecAD(root, "valid")  # type: ignore[arg-type]


def test_dataset_rejects_has_masks_without_a_mask(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.png must have a mask .* but got None"):
        ImageDataset([Record(tmp_path / "0.png", 1)], 8, has_masks=True)


# --- opening


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (CATEGORY, [f"train/good/{k:03}.png" for k in range(4)]),
        (("train/0.png", "train/1.png", "test/good/0.png"), ["train/0.png", "train/1.png"]),
        (("train/good/0.png",), ["train/good/0.png"]),
        (("0.png", "1.png", ".thumbs/0.png"), ["0.png", "1.png"]),
        (("good/0.png", "good/b/1.png"), ["good/0.png", "good/b/1.png"]),
    ],
)
def test_open_dataset_finds_normal_images_for_train(tree: Tree, names: tuple[str, ...], expected: list[str]) -> None:
    root = tree(*names)
    dataset = open_dataset(root, "train", 8)
    assert relative(dataset, root) == expected
    assert set(dataset.labels) == {0}


def test_open_dataset_rejects_ambiguous_layouts_for_train(tree: Tree, tmp_path: Path) -> None:
    root = tree("good/0.png", "bad/0.png", root="mixed")
    fails(lambda: open_dataset(root, "train"), root, "bad, good", f"such as {root / 'good'}")
    root = tree("0.png", "masks/0.png", root="beside")
    fails(lambda: open_dataset(root, "train"), root, "both images and folders", "masks")
    root = tree("train/good/0.png", "train/bad/0.png", root="deep")
    fails(lambda: open_dataset(root, "train"), root / "train", "bad, good")
    root = tree("test/good/0.png", root="testonly")
    fails(lambda: open_dataset(root, "train"), root, "must contain train/ beside test/")
    root = tree("screw/train/good/0.png", "pill/train/good/0.png", root="all")
    fails(lambda: open_dataset(root, "train"), root, "pill, screw", f"name {root / 'pill'}")
    fails(lambda: open_dataset(root, "test"), root, "pill, screw")
    assert len(open_dataset(root, "train", category="pill")) == 1
    fails(lambda: open_dataset(root / "pill", "train", category="pill"), root / "pill", "got a single category")
    fails(lambda: open_dataset(root / "pill", "train", category="../screw"), root / "pill", "got a single category")
    fails(lambda: open_dataset(root, "train", category="cable"), root, "must contain the category cable", "pill, screw")
    (tmp_path / "empty").mkdir()
    for split in ("train", "test", "predict"):
        fails(lambda split=split: open_dataset(tmp_path / "empty", split), tmp_path / "empty", "none")
        fails(lambda split=split: open_dataset(tmp_path / "missing", split), tmp_path / "missing", "check the path")
    file = root / "pill/train/good/0.png"
    fails(lambda: open_dataset(file, "train"), file, "got a file")
    with pytest.raises(ConfigError, match="split must be one of train, test, predict, but got 'val'"):
        open_dataset(root, "val")  # type: ignore[arg-type]


def test_open_dataset_finds_labels_and_masks_for_test(tree: Tree) -> None:
    root = tree(*CATEGORY)
    assert isinstance(open_dataset(root, "test", 8), MVTecAD)

    labeled = open_dataset(tree("good/0.png", "hole/0.png", "hole/a/1.png", root="labeled"), "test", 8)
    assert labeled.labels == (0, 1, 1)
    assert all(labeled[k].anomaly_mask is None for k in range(3))

    no_masks = open_dataset(tree("test/good/0.png", "test/hole/0.png", root="nomasks"), "test", 8)
    assert no_masks.labels == (0, 1)
    assert not no_masks.has_masks

    unknown = open_dataset(tree("0.png", "a/1.png", root="unknown"), "test", 8)
    assert unknown.labels == (-1, -1)
    assert open_dataset(Path(unknown.paths[0]), "test", 8).labels == (-1,)


def test_open_dataset_rejects_incomplete_layouts_for_test(tree: Tree) -> None:
    root = tree("good/0.png", "hole/0.png", "1.png")
    fails(lambda: open_dataset(root, "test"), root / "1.png", "an image outside")
    root = tree("train/good/0.png", root="trainonly")
    fails(lambda: open_dataset(root, "test"), root, "must contain test/ beside train/")


def test_open_dataset_finds_all_images_for_predict(tree: Tree) -> None:
    root = tree(*CATEGORY)
    (root / "ground_truth/hole/001_mask.png").unlink()  # masks are not needed
    dataset = open_dataset(root, "predict", 8)
    assert relative(dataset, root) == [name for name in sorted(CATEGORY) if name.startswith("test")]
    assert set(dataset.labels) == {-1}
    other = tree("test/0.png", "more/1.png", root="other")
    assert relative(open_dataset(other, "predict", 8), other) == ["more/1.png", "test/0.png"]
    file = other / "test/0.png"
    single = open_dataset(os.fspath(file), "predict", 8)
    assert single.paths == (str(file),)
    assert single[0].anomaly_mask is None


def test_synthetic_anomalies_accept_samples(tree: Tree) -> None:
    dataset = open_dataset(tree(*CATEGORY), "train", 64)
    batch = next(iter(DataLoader(SyntheticAnomalies(dataset), batch_size=4, collate_fn=collate)))
    assert batch.labels.tolist() == [0, 1, 1, 1]
    assert batch.anomaly_masks is not None
    assert batch.anomaly_masks.flatten(1).any(1).tolist() == [False, True, True, True]


@pytest.mark.parametrize(("category", "counts"), [("screw", (320, 41, 119)), ("toothbrush", (48, 12, 30))])
def test_open_dataset_opens_the_real_mvtec_categories(category: str, counts: tuple[int, int, int]) -> None:
    if not (MVTEC / category).is_dir():
        pytest.skip("the development data beside the repository are absent")
    train, test = (open_dataset(MVTEC / category, split) for split in ("train", "test"))
    assert (len(train), test.labels.count(0), test.labels.count(1)) == counts
    assert isinstance(test, MVTecAD)
    anomalous = test[test.labels.index(1)]
    assert anomalous.image.shape == (1 if category == "screw" else 3, 256, 256)
    assert 0.0 < anomalous.image.mean() < 1.0
    assert anomalous.anomaly_mask is not None
    assert 0.0 < anomalous.anomaly_mask.float().mean() < 0.3
