"""CIFAR-10 from batches, folders and zip files, with one normal class; malicious pickles cannot run code."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from helpers.data_cases import SHARED, fails, in_a_forked_child, positions_in, relative
from semflow.data import CIFAR10, CIFAR10_CLASSES, collate, open_dataset
from semflow.data.cifar import read_batch
from semflow.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def write_batch(path: Path, labels: list[int], protocol: int = 2) -> np.ndarray:
    """Write a batch in the official form: byte keys, one row of red, green and blue planes per image."""
    data = RNG.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    batch = {b"batch_label": b"x", b"labels": labels, b"data": data, b"filenames": [b"a.png"] * len(labels)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(batch, protocol))
    return data


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    for k in range(1, 6):
        write_batch(tmp_path / f"cifar-10-batches-py/data_batch_{k}", [(k + i) % 10 for i in range(12)])
    write_batch(tmp_path / "cifar-10-batches-py/test_batch", [i % 10 for i in range(23)])
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "cifar"
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(CIFAR10_CLASSES):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (32, 32), (label * 20, k * 50, 7)).save(root / split / name / f"{k:04}.png")
    return root


def zipped(folder: Path, target: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, inside + path.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("label", [0, 3, 9])
def test_cifar10_opens_batches(batches: Path, label: int) -> None:
    name, inner = CIFAR10_CLASSES[label], batches / "cifar-10-batches-py"
    train, test = CIFAR10(batches, "train", 32, category=name), CIFAR10(inner, "test", 32, category=name)
    raw = {file.name: pickle.loads(file.read_bytes()) for file in inner.iterdir()}  # written above
    expected = [
        (f"data_batch_{k}#{i}", raw[f"data_batch_{k}"][b"data"][i])
        for k in range(1, 6)
        for i, found in enumerate(raw[f"data_batch_{k}"][b"labels"])
        if found == label
    ]
    assert relative(train, inner) == [path for path, _ in expected]
    assert set(train.labels) == {0}
    for k, (_, row) in enumerate(expected):
        assert torch.equal(train[k].image, torch.from_numpy(row.reshape(3, 32, 32)).float() / 255)
    assert relative(test, inner) == [f"test_batch#{i}" for i in range(23)]
    assert test.labels == tuple(int(i % 10 != label) for i in range(23))
    assert test[22].anomaly_mask is None
    row = raw["test_batch"][b"data"][22]
    assert torch.equal(test[22].image, torch.from_numpy(row.reshape(3, 32, 32)).float() / 255)


def test_read_batch_reads_pickles_of_python_2(tmp_path: Path) -> None:
    """Python 2 wrote str as text opcodes, as in the official files."""
    labels, data = [3, 8], RNG.integers(0, 256, (2, 3072), dtype=np.uint8)

    def text(value: bytes) -> bytes:  # SHORT_BINSTRING, or BINSTRING
        size = len(value)
        return (b"U" + bytes([size]) if size < 256 else b"T" + size.to_bytes(4, "little")) + value

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01K\x02M\x00\x0c\x86" + dtype + b"\x89" + text(data.tobytes()) + b"tb"
    batch = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](K\x03K\x08eu."
    (tmp_path / "test_batch").write_bytes(batch)
    images, found = read_batch(tmp_path / "test_batch")
    assert np.array_equal(images.reshape(2, 3072), data)
    assert found.tolist() == labels


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_read_batch_reads_every_protocol(tmp_path: Path, protocol: int) -> None:
    data = write_batch(tmp_path / "test_batch", [1, 2, 3], protocol)
    images, labels = read_batch(tmp_path / "test_batch")
    assert np.array_equal(images.reshape(3, 3072), data)
    assert labels.tolist() == [1, 2, 3]


class _Runs:
    """Object whose pickle calls a function with arguments."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, object]:
        return self.call


def test_read_batch_runs_no_code_from_a_pickle(batches: Path, tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", batches / "cifar-10-batches-py/test_batch"
    for attack in (
        _Runs(os.mkdir, str(marker)),
        _Runs(eval, f"__import__('os').mkdir({str(marker)!r})"),
        _Runs(getattr, np.ndarray, "tofile"),
        _Runs(np.load, "x.npy"),
    ):
        for content in (attack, {b"data": attack}, [attack]):
            file.write_bytes(pickle.dumps(content, 2))
            fails(lambda: CIFAR10(batches, "test", category="cat"), file, "only arrays")
    assert not marker.exists()


def test_read_batch_is_unaffected_by_earlier_pickles(tmp_path: Path) -> None:
    """The BUILD opcode sets attributes of an object: here of the function that makes arrays."""
    state = b"N}(X\x0c\x00\x00\x00__defaults__K\x01K\x02K\x03\x87u\x86"
    (tmp_path / "test_batch").write_bytes(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n" + state + b"b.")
    fails(lambda: read_batch(tmp_path / "test_batch"), tmp_path / "test_batch", "got other content")
    write_batch(tmp_path / "test_batch", [4])
    assert read_batch(tmp_path / "test_batch")[1].tolist() == [4]


@given(kept=st.floats(0.0, 0.999))
def test_read_batch_rejects_truncated_files(tmp_path_factory: pytest.TempPathFactory, kept: float) -> None:
    file = tmp_path_factory.getbasetemp() / "cut" / "test_batch"
    write_batch(file, [1, 2])
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    fails(lambda: read_batch(file), file, "a batch of CIFAR-10", "unpack it again")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([1, 2], "got other content"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "got other content"),
        ({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}, "got other content"),
        ({b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]}, "got other content"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "got other content"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]}, "got other content"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "one label per image, but got 1 for 2"),
    ],
)
def test_cifar10_rejects_pickles_with_other_content(tmp_path: Path, content: object, part: str) -> None:
    file = tmp_path / "test_batch"
    file.write_bytes(pickle.dumps(content, 2))
    fails(lambda: CIFAR10(tmp_path, "test", category="cat"), file, part)


def test_cifar10_folder_and_zip_file_give_equal_images(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        plain = CIFAR10(folder, split, 32, category="deer")
        for inside in ("", "cifar10/"):
            packed = CIFAR10(zipped(folder, tmp_path / "c.zip", inside), split, 32, category="deer")
            assert packed.labels == plain.labels
            names = [f"c.zip#{inside}{name}" for name in relative(plain, folder)]
            assert relative(packed, tmp_path) == names
            assert not packed.has_masks
            for one, two in zip(plain, packed, strict=True):
                assert torch.equal(one.image, two.image)
    assert relative(CIFAR10(folder, "train", category="deer"), folder) == [f"train/deer/{k:04}.png" for k in range(3)]
    test = CIFAR10(folder, "test", 32, category="deer")
    assert [Path(path).parent.name for path in test.paths] == [name for name in CIFAR10_CLASSES for _ in range(2)]
    assert [Path(path).parent.name == "deer" for path in test.paths] == [not label for label in test.labels]


def test_cifar10_zip_file_is_opened_by_each_process(folder: Path, tmp_path: Path) -> None:
    packed = CIFAR10(zipped(folder, tmp_path / "c.zip"), "test", 8, category="cat")
    packed[0]
    before = positions_in(tmp_path / "c.zip")
    in_a_forked_child(lambda: packed[19])
    assert len(before) == 1
    assert positions_in(tmp_path / "c.zip") == before
    batches = [list(DataLoader(packed, batch_size=4, num_workers=n, collate_fn=collate)) for n in (0, 2)]
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.images, two.images)
        assert one.paths == two.paths
    assert torch.equal(pickle.loads(pickle.dumps(packed))[5].image, packed[5].image)


def test_cifar10_reports_missing_files_and_classes(batches: Path, folder: Path, tmp_path: Path) -> None:
    def train(root: Path) -> CIFAR10:
        return CIFAR10(root, "train", category="frog")

    def test(root: Path) -> CIFAR10:
        return CIFAR10(root, "test", category="frog")

    inner = batches / "cifar-10-batches-py"
    (inner / "data_batch_3").unlink()
    fails(lambda: train(batches), inner / "data_batch_3", "no such file", "unpack cifar-10-python.tar.gz completely")
    write_batch(inner / "test_batch", [1, 2])
    fails(lambda: test(batches), inner, "test images of frog and other classes")

    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "cifar-10-python.tar.gz").write_bytes(b"")
    fails(lambda: train(packed), packed / "train", f"the archive cifar-10-python.tar.gz in {packed}")
    archive = packed / "cifar-10-python.tar.gz"
    fails(lambda: train(archive), archive, "a packed archive", "unpack it")
    fails(lambda: train(tmp_path / "none"), tmp_path / "none", "check the path")

    shutil.rmtree(folder / "test" / "cat")
    shutil.rmtree(folder / "train" / "frog")
    for root in (folder, zipped(folder, tmp_path / "c.zip")):
        fails(lambda root=root: test(root), root, "got none of cat", "unpack the dataset completely")
        fails(lambda root=root: train(root), root, "got none of frog")
    (folder / "test" / "lion").mkdir()
    Image.new("L", (4, 4)).save(folder / "test/lion/0.png")
    fails(lambda: test(folder), folder, "got lion/")
    with pytest.raises(ConfigError, match=r"one of airplane, automobile, .*, but got 'plane'"):
        CIFAR10(folder, category="plane")
    with pytest.raises(ConfigError, match="split must be train or test, but got 'val'"):
        CIFAR10(folder, "val", category="cat")  # type: ignore[arg-type]


def test_cifar10_rejects_broken_zip_files(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    path.write_bytes(b"PK no zip")
    fails(lambda: CIFAR10(path, category="cat"), path, "a zip file", "copy it again")
    zipped(folder, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("train/cat/0001.png")
    content[info.header_offset + 30 + len(info.filename) + 45] ^= 0xFF  # within the bytes of the image
    path.write_bytes(content)
    dataset = CIFAR10(path, "train", category="cat")
    fails(dataset.verify, f"{path}#train/cat/0001.png", "an intact image")
    path.unlink()
    with pytest.raises(DataError):
        pickle.loads(pickle.dumps(dataset))[0]


def test_open_dataset_requires_a_category_for_cifar10(batches: Path, folder: Path) -> None:
    for root in (batches, batches / "cifar-10-batches-py", folder):
        fails(lambda root=root: open_dataset(root, "train"), root, "CIFAR10", "name the normal class as category")
        opened = open_dataset(root, "test", 32, category="cat")
        assert isinstance(opened, CIFAR10)
        assert opened.labels == CIFAR10(root, "test", 32, category="cat").labels
    with pytest.raises(ConfigError, match="category must be None with split predict, but got 'cat'"):
        open_dataset(batches, "predict", category="cat")


@pytest.mark.parametrize("category", ["airplane", "truck"])
def test_cifar10_opens_the_real_images(category: str) -> None:
    archive = SHARED / "cifar10_jpeg_subset.zip"
    if not archive.is_file():
        pytest.skip("the development data beside the repository are absent")
    train, test = (CIFAR10(archive, split, 32, category=category) for split in ("train", "test"))
    assert (len(train), test.labels.count(0), test.labels.count(1)) == (500, 100, 900)
    assert all(f"#train/{category}/" in path for path in train.paths)
    levels = torch.stack([train[k].image for k in range(0, 500, 10)])
    assert levels.shape == (50, 3, 32, 32)
    assert 0.2 < levels.mean() < 0.8
    assert levels.std() > 0.1
    if category == "airplane":  # airplanes are seen against a blue sky
        assert levels[:, 2].mean() > levels[:, 0].mean() + 0.02
