"""The layout of the ShanghaiTech Campus data set (STC)."""

from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow._validation import checked
from semflow.errors import DataError

from .clips import UNPACK, check_rows, find_clips, list_frames, load_rows, no_scene, of_scene
from .decoding import check_mask_size, oriented_size, resize_mask
from .folder import ImageDataset, Record
from .places import check_split, listed, require_folder
from .videos import VideoFrames

__all__ = ["ShanghaiTech", "is_shanghaitech"]


class ShanghaiTech(ImageDataset):
    """The frames of one scene of the ShanghaiTech Campus data set (Luo et al. 2017), clip by clip, in time order.

    - "train": ROOT/training/frames/SCENE_CLIP/*.jpg, or else ROOT/training/videos/SCENE_CLIP.avi, read with PyAV (the
      extra `video`). All normal. Of a video, `paths` are `01_001.avi#0`, `#1` and so on.
    - "test": ROOT/testing/frames/SCENE_CLIP/*.jpg; labels from ROOT/testing/test_frame_mask/SCENE_CLIP.npy (T,), and
      masks from ROOT/testing/test_pixel_mask/SCENE_CLIP.npy (T, H, W), of which only the rows asked for are read.

    Opening lists files and reads headers. It compares the numbers of frames and of mask rows, clip by clip, and the
    size of the masks with that of each clip's first frame. Scene 13 has no test clips.

    Args:
        root: the folder that holds training/ and testing/.
        split: "train" or "test".
        image_size: side of the images in pixels; the frames (856 x 480) do not keep their aspect ratio.
        category: the scene, "01" to "13"; one model is fitted for each.
        cache: see `ImageDataset`; a scene has thousands of frames.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     testing = Path(root) / "testing"
    ...     for name in ("frames/01_0014", "test_frame_mask", "test_pixel_mask"):
    ...         (testing / name).mkdir(parents=True)
    ...     for k in range(3):
    ...         Image.new("L", (8, 6)).save(testing / "frames" / "01_0014" / f"{k:03}.jpg")
    ...     np.save(testing / "test_frame_mask" / "01_0014.npy", np.array([0, 1, 1]))
    ...     np.save(testing / "test_pixel_mask" / "01_0014.npy", np.ones((3, 6, 8), np.uint8))
    ...     ShanghaiTech(root, "test", image_size=4, category="01")
    ShanghaiTech(1 normal, 2 anomalous, image_size=4, has_masks=True)

    Raises:
        ConfigError: there are only videos, and PyAV is not installed.
        DataError: a folder or the scene is missing, frames are missing, or labels or masks do not fit the frames.
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: int = 256,
        *,
        category: str,
        cache: bool = False,
    ) -> None:
        check_split("ShanghaiTech", split)
        top = require_folder(Path(root), "the folder of ShanghaiTech")
        # Record by record: the row of the clip's mask or the frame of the clip's video.
        self._rows: list[int] = []
        self._videos: dict[Path, VideoFrames] = {}
        self._current: VideoFrames | None = None
        records = self._train(top, category) if split == "train" else self._test(top, category)
        super().__init__(records, image_size, has_masks=True, cache=cache)
        self.root, self.split, self.category = top, split, category

    def read_image(self, index: int) -> Image.Image:
        """Decode a frame; one video is open at a time."""
        video = self._videos.get(_packed_in(self.records[index].path))
        if video is None:
            return super().read_image(index)
        if self._current is not None and self._current is not video:
            self._current.close()
        self._current = video
        return video.read(self._rows[index])

    def read_mask(self, index: int, image_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Read the row of a clip's masks that belongs to a frame."""
        file = self.records[index].mask
        if file is None:
            return super().read_mask(index, image_size)
        mask: NDArray[np.bool_] = load_rows(file, ("T", "H", "W"))[self._rows[index]] != 0
        check_mask_size(file, (mask.shape[1], mask.shape[0]), image_size)
        return resize_mask(mask, self.image_size)

    def _train(self, root: Path, scene: str) -> list[Record]:
        training = require_folder(root / "training", "ShanghaiTech's training videos", UNPACK)
        folders, videos = find_clips(training / "frames"), find_clips(training / "videos", ".avi")
        if not folders and not videos:
            raise DataError(
                f"{training}: expected clips in frames/SCENE_CLIP/ or videos/SCENE_CLIP.avi, but there are none; "
                f"{UNPACK}."
            )
        chosen, films = of_scene(folders, scene), of_scene(videos, scene)
        if not chosen and not films:
            raise no_scene(training, scene, [*folders, *videos])
        lacking = sorted({path.stem for path in films} - {path.name for path in chosen})
        if chosen and lacking:
            raise DataError(
                f"{training / 'frames'}: expected a folder for each video of scene {scene}, but {listed(lacking)} "
                "is missing; unpack the frames of these videos too, or remove frames/ to read the videos."
            )
        records = []
        for folder in chosen:
            records += [Record(path, 0) for path in list_frames(folder)]
        self._rows += [0] * len(records)
        for path in () if chosen else films:
            video = self._videos[path] = VideoFrames(path)
            records += [Record(path.with_name(f"{path.name}#{k}"), 0) for k in range(len(video))]
            self._rows += range(len(video))
        return records

    def _test(self, root: Path, scene: str) -> list[Record]:
        testing = require_folder(root / "testing", "ShanghaiTech's test frames", UNPACK)
        frames = require_folder(testing / "frames", "folders of test frames, SCENE_CLIP/", UNPACK)
        labels = require_folder(testing / "test_frame_mask", "the labels of the frames, SCENE_CLIP.npy", UNPACK)
        masks = require_folder(testing / "test_pixel_mask", "the masks of the frames, SCENE_CLIP.npy", UNPACK)
        folders = find_clips(frames)
        chosen = of_scene(folders, scene)
        if not chosen:
            raise no_scene(frames, scene, folders)
        records: list[Record] = []
        for folder in chosen:
            paths = list_frames(folder)
            file = masks / f"{folder.name}.npy"
            rows = load_rows(labels / f"{folder.name}.npy", ("T",))
            check_rows(labels / f"{folder.name}.npy", len(rows), folder, len(paths))
            shape = load_rows(file, ("T", "H", "W")).shape
            check_rows(file, shape[0], folder, len(paths))
            check_mask_size(file, (shape[2], shape[1]), oriented_size(paths[0]))
            records += [Record(path, int(row != 0), file) for path, row in zip(paths, rows, strict=True)]
            self._rows += range(len(paths))
        return records


def is_shanghaitech(path: Path) -> bool:
    """Whether a folder is laid out as ShanghaiTech Campus."""
    return any((path / mark).is_dir() for mark in ("testing/frames", "training/videos", "training/frames"))


def _packed_in(path: Path) -> Path:
    """The file in which something is packed: `01_001.avi` for `01_001.avi#12`."""
    return path.with_name(path.name.rpartition("#")[0] or path.name)
