"""VisA: the raw layout with the official split, or a holdout split on request."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.data_cases import fails, left_half_is_anomalous, relative, save_gray, save_index_mask
from semflow.data import MVTecAD, VisA, open_dataset
from semflow.errors import ConfigError

NORMAL, ANOMALOUS = 12, 3


def make_category(folder: Path) -> None:
    for k in range(NORMAL):
        save_gray(folder / f"Data/Images/Normal/{k:04}.JPG", 40)
    for k in range(ANOMALOUS):
        save_gray(folder / f"Data/Images/Anomaly/{k:03}.JPG", 220)
        save_index_mask(folder / f"Data/Masks/Anomaly/{k:03}.png", (k + 1, 0))  # one type of defect after another
    (folder / "image_anno.csv").write_text("image,label,mask\n")


def csv_lines(category: str, test: tuple[int, ...] = (4, 7)) -> list[str]:
    """Return rows in the official form, shuffled, with test images among the training images."""
    lines = []
    for k in sorted(range(NORMAL), key=lambda k: k * 5 % NORMAL):
        split = "test" if k in test else "train"
        lines.append(f"{category},{split},normal,{category}/Data/Images/Normal/{k:04}.JPG,")
    for k in range(ANOMALOUS):
        image, mask = f"Data/Images/Anomaly/{k:03}.JPG", f"Data/Masks/Anomaly/{k:03}.png"
        lines.append(f"{category},test,anomaly,{category}/{image},{category}/{mask}")
    return lines


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    root = tmp_path / "VisA"
    for category in ("candle", "pcb1"):
        make_category(root / category)
    write_split(root, [*csv_lines("candle"), *csv_lines("pcb1", (0,))])
    return root


def write_split(root: Path, lines: list[str], head: str = "object,split,label,image,mask") -> Path:
    path = root / "split_csv" / "1cls.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_visa_opens_the_official_split(visa: Path) -> None:
    train, test = VisA(visa, "train", 8, category="candle"), VisA(visa, "test", 8, category="candle")
    kept = [k for k in range(NORMAL) if k not in (4, 7)]
    assert relative(train, visa) == [f"candle/Data/Images/Normal/{k:04}.JPG" for k in kept]
    assert set(train.labels) == {0}
    assert relative(test, visa) == [
        *(f"candle/Data/Images/Normal/{k:04}.JPG" for k in (4, 7)),
        *(f"candle/Data/Images/Anomaly/{k:03}.JPG" for k in range(ANOMALOUS)),
    ]
    assert test.labels == (0, 0, 1, 1, 1)
    assert [left_half_is_anomalous(test, k) for k in range(5)] == [False, False, True, True, True]
    assert len(VisA(visa, "test", 8, category="pcb1")) == 4


def test_visa_finds_the_split_file_beside_a_category(visa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        expected = relative(VisA(visa, split, 8, category="pcb1"), visa / "pcb1")
        assert relative(VisA(visa / "pcb1", split, 8), visa / "pcb1") == expected
        opened = open_dataset(visa / "pcb1", split, 8)
        assert isinstance(opened, VisA)
        assert relative(opened, visa / "pcb1") == expected
        with monkeypatch.context() as within:
            within.chdir(visa / "pcb1")
            assert list(VisA(".", split, 8).paths) == expected
    images = open_dataset(visa / "pcb1", "predict", 8)
    assert len(images) == NORMAL + ANOMALOUS  # without the masks
    assert set(images.labels) == {-1}


def test_visa_opens_a_category_that_is_a_link(visa: Path, tmp_path: Path) -> None:
    expected = relative(VisA(visa, "test", category="pcb1"), visa)
    (visa / "pcb1").rename(tmp_path / "elsewhere")
    (visa / "pcb1").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for linked in (VisA(visa, "test", category="pcb1"), VisA(visa / "pcb1", "test")):
        assert relative(linked, visa) == expected


def test_visa_requires_a_split_file(visa: Path) -> None:
    shutil.rmtree(visa / "split_csv")
    file = visa / "split_csv" / "1cls.csv"
    for open_it in (lambda: VisA(visa, category="candle"), lambda: open_dataset(visa / "candle", "test")):
        fails(open_it, file, "no such file", "holdout=10")
    elsewhere = visa.parent / "mine.csv"
    elsewhere.write_text("\n".join(["object,split,label,image,mask", *csv_lines("candle", (1,))]))
    test = VisA(visa, "test", 8, category="candle", split_file=elsewhere)
    assert relative(test, visa)[0] == "candle/Data/Images/Normal/0001.JPG"


@given(holdout=st.integers(1, NORMAL + 3))
def test_visa_holdout_divides_the_normal_images(tmp_path_factory: pytest.TempPathFactory, holdout: int) -> None:
    root = tmp_path_factory.getbasetemp() / "visa-holdout"
    if not root.exists():
        make_category(root)
    every = [f"Data/Images/Normal/{k:04}.JPG" for k in range(NORMAL)]
    parts: dict[str, list[str]] = {}
    for split in ("train", "test"):
        expected = [k for k in range(NORMAL) if ((k + 1) % holdout == 0) == (split == "test")]
        if not expected:
            fails(
                lambda split=split: VisA(root, split, holdout=holdout), root / "Data/Images/Normal", "another holdout"
            )
            parts[split] = []
            continue
        dataset = VisA(root, split, 8, holdout=holdout)
        normal = [name for name, label in zip(relative(dataset, root), dataset.labels, strict=True) if not label]
        assert normal == [every[k] for k in expected]
        assert dataset.labels.count(1) == (ANOMALOUS if split == "test" else 0)
        parts[split] = normal
    assert sorted(parts["train"] + parts["test"]) == every


def test_visa_rejects_holdout_with_a_split_file(visa: Path) -> None:
    for options in ({"holdout": 0}, {"holdout": 10, "split_file": "1cls.csv"}):
        with pytest.raises(ConfigError, match="holdout must be at least 1 and given without split_file, but got"):
            VisA(visa, category="candle", **options)


def test_visa_rejects_invalid_split_files(visa: Path) -> None:
    def rejects(lines: list[str], *parts: object, head: str = "object,split,label,image,mask") -> None:
        file = write_split(visa, lines, head)
        fails(lambda: VisA(visa, "test", category="candle"), file, *parts)

    lines = csv_lines("candle")
    rejects(lines, "object, split, label, image, mask", "got no label", head="object,split,image,mask")
    rejects(csv_lines("pcb1"), "rows of candle", "only pcb1")
    two_class = [line.replace("test,anomaly", "train,anomaly") for line in lines]
    rejects(two_class, "train on normal images", f"line {NORMAL + 2}")
    rejects([line.replace(",test,", ",valid,") for line in lines], "train or test", "'valid'")
    rejects([line for line in lines if ",train," in line], "test rows of candle")
    rejects([line.rpartition(",")[0] + "," for line in lines], "name a mask in line")
    write_split(visa, lines).write_bytes(b"\xff\xfe\x00")
    fails(lambda: VisA(visa, category="candle"), visa / "split_csv/1cls.csv", "a CSV file")


def test_visa_reports_missing_files_and_categories(visa: Path) -> None:
    pcb = visa / "pcb1"
    (pcb / "Data/Masks/Anomaly/001.png").unlink()
    fails(lambda: VisA(pcb, "test"), pcb / "Data/Masks/Anomaly/001.png", "the mask", "1 of 3 are missing")
    shutil.rmtree(pcb / "Data/Masks")
    fails(lambda: VisA(pcb, "test", holdout=10), pcb / "Data/Masks/Anomaly", "the masks of")
    for k in (3, 5):
        (pcb / f"Data/Images/Normal/{k:04}.JPG").unlink()
    fails(lambda: VisA(pcb), pcb / "Data/Images/Normal/0003.JPG", "2 of 11 are missing", "completely")
    save_index_mask(visa / "candle/Data/Masks/Anomaly/000.png", size=(8, 12))
    fails(lambda: VisA(visa, "test", category="candle"), visa / "candle/Data/Masks/Anomaly/000.png", "8 x 12")
    shutil.rmtree(pcb)
    fails(lambda: VisA(visa, category="pcb1"), pcb, "the category pcb1", "got only candle")
    fails(lambda: VisA(visa), visa, "got the categories candle")
    fails(lambda: open_dataset(visa, "train"), visa, "got the categories candle", f"name {visa / 'candle'}")
    shutil.rmtree(visa / "candle")
    (visa / "VisA_20220922.tar").write_bytes(b"")
    fails(lambda: VisA(visa, category="pcb1"), pcb, f"the archive VisA_20220922.tar in {visa}")


def test_mvtec_opens_the_output_of_visas_preparation_script(visa: Path, tmp_path: Path) -> None:
    raw, prepared = VisA(visa, "test", 8, category="candle"), tmp_path / "VisA_pytorch/1cls/candle"
    for record in (*raw.records, *VisA(visa, "train", category="candle").records):
        split = "test" if record in raw.records else "train"
        target = prepared / split / ("bad" if record.label else "good") / record.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.path, target)
        if record.mask:
            save_index_mask(prepared / "ground_truth/bad" / record.mask.name, (255, 0))
    again = MVTecAD(prepared, "test", 8)
    assert sorted(zip(map(Path, again.paths), again.labels, strict=True)) == sorted(
        (prepared / "test" / ("bad" if label else "good") / Path(path).name, label)
        for path, label in zip(raw.paths, raw.labels, strict=True)
    )
    assert sum(left_half_is_anomalous(again, k) for k in range(len(again))) == ANOMALOUS
    fails(lambda: VisA(prepared), prepared, "open it with MVTecAD")
    fails(lambda: VisA(prepared.parent, category="candle"), prepared, "open it with MVTecAD")
