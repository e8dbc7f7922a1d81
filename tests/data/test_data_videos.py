"""Videos: reading a frame in any order gives the frame of sequential decoding."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from helpers.data_cases import fails, in_a_forked_child, positions_in
from semflow.data import ShanghaiTech, collate
from semflow.data.videos import VideoFrames
from semflow.errors import ConfigError, DataError

av = pytest.importorskip("av", reason="PyAV, the extra `video`, is not installed")

FRAMES = 40
# With and without B-frames, and with key frames only. In AVI, B-frames make the time stamps of H.264 wrong.
CODECS = {
    "mpeg4": ("mpeg4", {"g": "12"}),
    "mpeg4-b": ("mpeg4", {"g": "12", "bf": "2"}),
    "mjpeg": ("mjpeg", {}),
    "h264": ("libx264", {"g": "10"}),
}


def write_video(path: Path, codec: str, options: dict[str, str], frames: int = FRAMES) -> Path:
    """Write a bright bar that moves over a flickering background: no two frames are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for k in range(frames):
            pixels = np.full((48, 64, 3), 20 + 37 * k % 200, np.uint8)
            pixels[:, k : k + 6] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """Decode all frames from the start."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module", params=CODECS)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    codec, options = CODECS[request.param]
    path = tmp_path_factory.mktemp("videos") / f"{request.param}.avi"
    try:
        write_video(path, codec, options)
    except av.error.EncoderNotFoundError:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    frames = decoded(path)
    assert len(frames) == FRAMES
    assert len({frame.tobytes() for frame in frames}) == FRAMES, "all frames must differ to detect a wrong one"
    return path, frames


def test_video_reads_frames_in_order(video: tuple[Path, list[np.ndarray]]) -> None:
    path, frames = video
    read = VideoFrames(path)
    assert len(read) == FRAMES
    for k, expected in enumerate(frames):
        image = read.read(k)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), expected)


@settings(max_examples=15)
@given(order=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=8))
def test_video_reads_frames_in_any_order(video: tuple[Path, list[np.ndarray]], order: list[int]) -> None:
    path, frames = video
    read = VideoFrames(path)
    for k in order:
        assert np.array_equal(np.asarray(read.read(k)), frames[k]), k
    again = pickle.loads(pickle.dumps(read))  # like the copy of a spawned worker
    assert np.array_equal(np.asarray(again.read(order[0])), frames[order[0]])


def test_video_decodes_frames_once_and_seeks_to_key_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = VideoFrames(write_video(tmp_path / "a.avi", *CODECS["mpeg4"]))
    starts: list[int] = []
    began = VideoFrames._start_at
    monkeypatch.setattr(VideoFrames, "_start_at", lambda self, start: starts.append(start) or began(self, start))
    for k in range(FRAMES):
        read.read(k)
    assert starts == [0]
    read.read(30)
    assert 0 < starts[-1] <= 30
    read.read(31)
    assert len(starts) == 2


@pytest.fixture
def stc(tmp_path: Path) -> Path:
    for clip, frames in (("01_001", 15), ("01_002", 9), ("02_001", 3)):
        write_video(tmp_path / f"training/videos/{clip}.avi", *CODECS["mpeg4"], frames=frames)
    return tmp_path


def test_shanghaitech_opens_the_videos_of_a_scene(stc: Path) -> None:
    train = ShanghaiTech(stc, "train", 48, category="01")
    assert len(train) == 24
    names = [Path(path).name for path in train.paths]
    assert names == [*(f"01_001.avi#{k}" for k in range(15)), *(f"01_002.avi#{k}" for k in range(9))]
    assert len(set(train.paths)) == 24
    truth = [*decoded(stc / "training/videos/01_001.avi"), *decoded(stc / "training/videos/01_002.avi")]
    for k in (23, 3, 15, 14, 4):
        sample = train[k]
        assert sample.label == 0
        assert sample.anomaly_mask is not None
        assert not sample.anomaly_mask.any()
        # Resized from 64 to 48 columns: the background at the right edge identifies the frame.
        ground = float(truth[k][:, -8:].mean()) / 255
        assert sample.image[:, :, -4:].mean().item() == pytest.approx(ground, abs=0.005)


def test_video_frames_are_equal_with_workers(stc: Path) -> None:
    train = ShanghaiTech(stc, "train", 16, category="01")
    train[10]  # the workers must not use the open decoder of their parent
    batches = [list(DataLoader(train, batch_size=8, num_workers=n, collate_fn=collate)) for n in (0, 2)]
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.images, two.images)


def test_forked_worker_keeps_the_file_position_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "noise.avi"  # larger than the read-ahead buffer
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        for _ in range(30):
            pixels = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    read = VideoFrames(path)
    read.read(3)
    before = positions_in(path)
    in_a_forked_child(lambda: [read.read(k) for k in range(4, 26)])
    assert len(before) == 1
    assert positions_in(path) == before


def test_reading_a_frame_leaves_no_threads(stc: Path) -> None:
    """A forked worker that releases its parent's last frame would wait for the threads of its converter."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("threads are counted in /proc, which this system lacks")
    before = {path.name for path in tasks.iterdir()}
    read = VideoFrames(stc / "training/videos/01_001.avi")
    read.read(10)
    assert {path.name for path in tasks.iterdir()} <= before


def test_video_rejects_truncated_and_broken_files(stc: Path) -> None:
    path = stc / "training/videos/01_002.avi"
    path.write_bytes(path.read_bytes()[:-3000])
    fails(lambda: ShanghaiTech(stc, category="01"), path, "a truncated file")
    path.write_bytes(b"no video at all" * 10)
    fails(lambda: ShanghaiTech(stc, category="01"), path, "a complete video")
    path.write_bytes(b"")
    fails(lambda: ShanghaiTech(stc, category="01"), path)
    fails(lambda: VideoFrames(stc / "none.avi"), stc / "none.avi", "no such file")


def test_video_reports_a_file_that_shrank_after_opening(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", *CODECS["mjpeg"])
    read = VideoFrames(path)
    write_video(path, *CODECS["mjpeg"], frames=5)
    fails(lambda: read.read(20), path, "40 frames, but got 5")


def test_video_error_without_pyav_names_the_extra(stc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r'av must be installed.* pip install "semflow\[video\]"'):
        ShanghaiTech(stc, category="01")


def test_video_rejects_sound_files(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="got no video stream"):
        VideoFrames(path)
