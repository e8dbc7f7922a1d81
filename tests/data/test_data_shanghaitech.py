"""ShanghaiTech: clips of one scene, frames sorted by number, labels and masks by row."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from helpers.data_cases import fails, left_half_is_anomalous, relative, save_gray
from semflow.data import ShanghaiTech, collate, open_dataset
from semflow.errors import ConfigError

CLIPS = {"01_0014": 4, "01_0015": 3, "02_0128": 2}
"""Test clips and their frames; the first frame of each is normal, the others are anomalous."""


@pytest.fixture
def stc(tmp_path: Path) -> Path:
    root = tmp_path / "shanghaitech"
    for clip, length in (("01_001", 3), ("01_002", 2), ("02_001", 2), ("13_001", 1)):
        for k in range(length):
            save_gray(root / "training/frames" / clip / f"{k:03}.jpg", 10 * k)
    for name in ("test_frame_mask", "test_pixel_mask"):
        (root / "testing" / name).mkdir(parents=True)
    for clip, length in CLIPS.items():
        for k in range(length):
            save_gray(root / "testing/frames" / clip / f"{k:03}.jpg", 10 * k)
        masks = np.zeros((length, 8, 12), np.uint8)
        masks[1:, :, :6] = 1
        np.save(root / f"testing/test_pixel_mask/{clip}.npy", masks)
        np.save(root / f"testing/test_frame_mask/{clip}.npy", (np.arange(length) > 0).astype(np.int8))
    return root


def test_shanghaitech_opens_the_clips_of_one_scene(stc: Path) -> None:
    train, test = ShanghaiTech(stc, "train", 8, category="01"), ShanghaiTech(stc, "test", 8, category="01")
    assert relative(train, stc / "training/frames") == [
        *(f"01_001/{k:03}.jpg" for k in range(3)),
        *(f"01_002/{k:03}.jpg" for k in range(2)),
    ]
    assert set(train.labels) == {0}
    assert not any(left_half_is_anomalous(train, k) for k in range(5))
    assert relative(test, stc / "testing/frames") == [
        *(f"01_0014/{k:03}.jpg" for k in range(4)),
        *(f"01_0015/{k:03}.jpg" for k in range(3)),
    ]
    assert test.labels == (0, 1, 1, 1, 0, 1, 1)
    assert [left_half_is_anomalous(test, k) for k in range(7)] == [False, True, True, True, False, True, True]
    assert test[2].image.mean().item() == pytest.approx(20 / 255, abs=0.01)
    assert len(ShanghaiTech(stc, "test", category="02")) == 2


def test_shanghaitech_reads_masks_of_every_dtype_by_row(stc: Path) -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.bool_, np.uint8, np.float64):
        masks = (rng.random((4, 8, 12)) < 0.4).astype(dtype)
        np.save(stc / "testing/test_pixel_mask/01_0014.npy", masks)
        dataset = ShanghaiTech(stc, "test", 24, category="01")
        for k in rng.permutation(4):
            sample = dataset[int(k)]
            assert sample.anomaly_mask is not None
            # 8 x 12 to 24 x 24 by nearest neighbor repeats rows three times and columns twice.
            expected = np.repeat(np.repeat(masks[k] != 0, 3, axis=0), 2, axis=1)
            assert torch.equal(sample.anomaly_mask, torch.from_numpy(expected))


def test_shanghaitech_sorts_frames_by_number(stc: Path) -> None:
    folder = stc / "testing/frames/02_0128"
    shutil.rmtree(folder)
    for number in (998, 999, 1000, 1001):
        save_gray(folder / f"{number:03}.jpg")
    np.save(stc / "testing/test_frame_mask/02_0128.npy", np.array([1, 0, 0, 1]))
    np.save(stc / "testing/test_pixel_mask/02_0128.npy", np.zeros((4, 8, 12), np.uint8))
    test = ShanghaiTech(stc, "test", category="02")
    assert [Path(path).stem for path in test.paths] == ["998", "999", "1000", "1001"]
    assert test.labels == (1, 0, 0, 1)


def test_shanghaitech_constructor_reads_only_headers(stc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with an intact header and broken content is reported when it is read."""
    frame = stc / "testing/frames/01_0014/002.jpg"
    frame.write_bytes(frame.read_bytes()[:-20])
    masks = stc / "testing/test_pixel_mask/01_0014.npy"
    with monkeypatch.context() as context:
        context.setattr(np, "load", lambda *args, **options: pytest.fail("read a whole array"))
        test = ShanghaiTech(stc, "test", 8, category="01")
        assert test[1].label == 1
    fails(test.verify, frame, "an intact image")
    masks.write_bytes(masks.read_bytes()[:-1])
    fails(lambda: ShanghaiTech(stc, "test", category="01"), masks, "(T, H, W)")


def test_shanghaitech_gives_equal_samples_with_workers(stc: Path) -> None:
    test = ShanghaiTech(stc, "test", 8, category="01")
    batches = [list(DataLoader(test, batch_size=3, num_workers=n, collate_fn=collate)) for n in (0, 2)]
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.images, two.images)
        assert one.anomaly_masks is not None
        assert two.anomaly_masks is not None
        assert torch.equal(one.anomaly_masks, two.anomaly_masks)
    assert pickle.loads(pickle.dumps(test)).paths == test.paths


def test_shanghaitech_rejects_mismatched_frames_labels_and_masks(stc: Path) -> None:
    def test_split() -> ShanghaiTech:
        return ShanghaiTech(stc, "test", category="01")

    frames, labels = stc / "testing/frames/01_0014", stc / "testing/test_frame_mask/01_0014.npy"
    masks = stc / "testing/test_pixel_mask/01_0014.npy"
    (frames / "003.jpg").unlink()
    fails(test_split, labels, "3 rows, one per frame, but got 4")
    save_gray(frames / "003.jpg")
    np.save(masks, np.zeros((5, 8, 12), np.uint8))
    fails(test_split, masks, "4 rows", "got 5")
    np.save(masks, np.zeros((4, 12, 8), np.uint8))
    fails(test_split, masks, "12 x 8 pixels, but got 8 x 12")
    np.save(masks, np.zeros((4, 8), np.uint8))
    fails(test_split, masks, "(T, H, W)", "(4, 8)")
    np.save(masks, np.array([[[None]]] * 4), allow_pickle=True)  # a pickle inside must not be read
    fails(test_split, masks, "(T, H, W)", "objects")
    masks.write_bytes(b"")
    fails(test_split, masks, "a numeric NumPy array")
    masks.unlink()
    fails(test_split, masks, "no such file")
    (frames / "001.jpg").unlink()
    fails(test_split, frames, "got 002.jpg after 000.jpg")
    save_gray(frames / "cover.jpg")
    fails(test_split, frames / "cover.jpg", "a number for its name")


def test_shanghaitech_reports_missing_folders_and_scenes(stc: Path, tmp_path: Path) -> None:
    for split, folder in (("train", "training"), ("test", "testing/frames")):
        fails(lambda split=split: ShanghaiTech(stc, split, category="1"), stc / folder, "'1'", "only scenes 01, 02")
    fails(lambda: ShanghaiTech(stc, "test", category="13"), stc / "testing/frames", "'13'", "only scenes 01, 02;")
    assert len(ShanghaiTech(stc, "train", category="13")) == 1
    for name in ("test_pixel_mask", "test_frame_mask", "frames"):
        shutil.rmtree(stc / "testing" / name)
        fails(lambda: ShanghaiTech(stc, "test", category="01"), stc / "testing" / name, "no such folder", "completely")
    shutil.rmtree(stc / "testing")
    fails(lambda: ShanghaiTech(stc, "test", category="01"), stc / "testing", "no such folder")
    shutil.rmtree(stc / "training/frames/01_002")
    (stc / "training/frames/01_002").mkdir()
    fails(lambda: ShanghaiTech(stc, category="01"), stc / "training/frames/01_002", "must contain frames, but got none")
    shutil.rmtree(stc / "training/frames")
    fails(lambda: ShanghaiTech(stc, category="01"), stc / "training", "frames/SCENE_CLIP/ or videos/SCENE_CLIP.avi")
    (tmp_path / "shanghaitech.tar.gz").write_bytes(b"")
    shutil.rmtree(stc)
    fails(lambda: ShanghaiTech(stc, category="01"), stc, f"the archive shanghaitech.tar.gz in {tmp_path}")
    with pytest.raises(ConfigError, match="split must be train or test, but got 'val'"):
        ShanghaiTech(stc, "val", category="01")  # type: ignore[arg-type]


def test_shanghaitech_rejects_frames_of_only_some_videos(stc: Path) -> None:
    for clip in ("01_001", "01_002", "01_003"):
        (stc / "training/videos").mkdir(exist_ok=True)
        (stc / f"training/videos/{clip}.avi").write_bytes(b"")
    fails(lambda: ShanghaiTech(stc, category="01"), stc / "training/frames", "got none for 01_003", "remove frames/")
    (stc / "training/videos/01_003.avi").unlink()
    assert len(ShanghaiTech(stc, category="01")) == 5  # from the frames: the empty videos are not opened


def test_open_dataset_requires_a_category_for_shanghaitech(stc: Path) -> None:
    assert open_dataset(stc, "test", 8, category="02").paths == ShanghaiTech(stc, "test", 8, category="02").paths
    for split in ("train", "test"):
        fails(lambda split=split: open_dataset(stc, split), stc, "ShanghaiTech", "name the scene as category")
