"""The layout of the ShanghaiTech Campus dataset (STC)."""

import re
from collections import defaultdict
from collections.abc import Collection
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semflow._validation import Size, checked
from semflow.errors import DataError

from .dataset import ImageDataset, Record
from .files import listed, require_folder
from .layouts import UNPACK
from .masks import anomalous_pixels, check_mask_size
from .reading import oriented_size
from .resizing import Resize, resize_mask
from .videos import VideoFrames
from .walking import find_images, scan

_CLIP = re.compile(r"\d+_\d+")


class ShanghaiTech(ImageDataset):
    """Frames of one scene of the ShanghaiTech Campus dataset (Luo et al. 2017), clip by clip in temporal order.

    - "train": ROOT/training/frames/SCENE_CLIP/*.jpg, or else ROOT/training/videos/SCENE_CLIP.avi, read with PyAV (the
      extra `video`). All frames are normal. The paths of video frames are `01_001.avi#0`, `01_001.avi#1` and so on.
    - "test": ROOT/testing/frames/SCENE_CLIP/*.jpg; labels from ROOT/testing/test_frame_mask/SCENE_CLIP.npy (T,), and
      masks from ROOT/testing/test_pixel_mask/SCENE_CLIP.npy (T, H, W), of which only the requested rows are read.

    The constructor lists files and reads headers: for each clip it compares the number of frames with the number of
    labels and masks, and the size of the masks with that of the first frame. Scene 13 has training clips only.

    Args:
        root: The folder that contains training/ and testing/.
        split: "train" or "test".
        category: The scene, "01" to "13"; train one model per scene.
        image_size, cache, resize: See `ImageDataset`; a scene has thousands of frames of 856 x 480 pixels.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "training/frames/01_0014").mkdir(parents=True)
        ...     Image.new("RGB", (32, 32)).save(Path(root, "training/frames/01_0014/0.png"))
        ...     ShanghaiTech(root, category="01")
        ShanghaiTech(1 normal, image_size=256, has_masks=True)
    """

    @checked
    def __init__(
        self,
        root: str | PathLike[str],
        split: Literal["train", "test"] = "train",
        image_size: Size | None = 256,
        *,
        category: str,
        cache: bool = False,
        resize: Resize = "stretch",
    ) -> None:
        top = require_folder(Path(root), "the folder of ShanghaiTech")
        # For each record: the row in the masks of its clip, or the frame in the video of its clip.
        self._rows: list[int] = []
        self._videos: dict[Path, VideoFrames] = {}
        self._current: VideoFrames | None = None
        records = self._train(top, category) if split == "train" else self._test(top, category)
        clips = sorted({record.path.parent for record in records})
        passed = [item for clip in clips for item in scan(clip, recursive=False).passed_over]
        passed = [item for item in passed if item.path.suffix.lower() != ".avi"]  # which are read
        super().__init__(records, image_size, has_masks=True, cache=cache, root=top, passed_over=passed, resize=resize)

    def read_image(self, index: int) -> Image.Image:
        """Decode a frame; one video is open at a time."""
        path = self.records[index].path
        video = self._videos.get(path.with_name(path.name.rpartition("#")[0] or path.name))
        if video is None:
            return super().read_image(index)
        if self._current is not None and self._current is not video:
            self._current.close()
        self._current = video
        return video.read(self._rows[index])

    def read_mask(self, index: int, image_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Read the row of the clip's masks that belongs to a frame; arguments as in `ImageDataset.read_mask`."""
        file = self.records[index].mask
        if file is None:
            return super().read_mask(index, image_size)
        row = self._rows[index]
        mask = anomalous_pixels(_load_rows(file, ("T", "H", "W"))[row], f"{file} row {row}")
        check_mask_size(file, (mask.shape[1], mask.shape[0]), image_size)
        return resize_mask(mask, self.size_of(image_size), self.resize)

    def _train(self, root: Path, scene: str) -> list[Record]:
        training = require_folder(root / "training", "the folder of ShanghaiTech's training clips", UNPACK)
        all_folders, all_videos = _clips(training / "frames"), _clips(training / "videos", ".avi")
        _check_scene(training, "frames/SCENE_CLIP/ or videos/SCENE_CLIP.avi", scene, {*all_folders, *all_videos})
        chosen, films = all_folders[scene], all_videos[scene]
        missing = sorted({path.stem for path in films} - {path.name for path in chosen})
        if chosen and missing:
            raise DataError(
                f"{training / 'frames'} must have a folder for each video of scene {scene}, but got none for "
                f"{listed(missing)}; unpack the frames of these videos too, or remove frames/ to read the videos"
            )
        records = [Record(path, 0) for folder in chosen for path in _frames(folder)]
        self._rows += [0] * len(records)
        for path in () if chosen else films:
            video = self._videos[path] = VideoFrames(path)
            records += [Record(path.with_name(f"{path.name}#{k}"), 0) for k in range(len(video))]
            self._rows += range(len(video))
        return records

    def _test(self, root: Path, scene: str) -> list[Record]:
        testing = require_folder(root / "testing", "the folder of ShanghaiTech's test clips", UNPACK)
        frames = require_folder(testing / "frames", "the folder of the test frames, SCENE_CLIP/", UNPACK)
        labels = require_folder(testing / "test_frame_mask", "the folder of the labels, SCENE_CLIP.npy", UNPACK)
        masks = require_folder(testing / "test_pixel_mask", "the folder of the masks, SCENE_CLIP.npy", UNPACK)
        folders = _clips(frames)
        _check_scene(frames, "SCENE_CLIP/", scene, folders)
        records: list[Record] = []
        for folder in folders[scene]:
            paths = _frames(folder)
            label_file, mask_file = (parent / f"{folder.name}.npy" for parent in (labels, masks))
            rows, shape = _load_rows(label_file, ("T",)), _load_rows(mask_file, ("T", "H", "W")).shape
            for file, count in ((label_file, len(rows)), (mask_file, shape[0])):
                if count != len(paths):
                    raise DataError(f"{file} must have {len(paths)} rows, one per frame, but got {count}; {UNPACK}")
            check_mask_size(mask_file, (shape[2], shape[1]), oriented_size(paths[0]))
            records += [Record(path, int(row != 0), mask_file) for path, row in zip(paths, rows, strict=True)]
            self._rows += range(len(paths))
        return records


def is_shanghaitech(path: Path) -> bool:
    """Return True for the layout of ShanghaiTech Campus."""
    return any((path / name).is_dir() for name in ("testing/frames", "training/videos", "training/frames"))


def scenes(root: Path, split: str) -> list[str]:
    """Return the scenes with clips of a split."""
    top = root / ("training" if split == "train" else "testing")
    return sorted({*_clips(top / "frames"), *_clips(top / "videos", ".avi")})


def _clips(folder: Path, suffix: str = "") -> defaultdict[str, list[Path]]:
    """Return the clips in a folder by scene: subfolders, or files with a suffix, named SCENE_CLIP."""
    clips: defaultdict[str, list[Path]] = defaultdict(list)
    seen: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = path.stem if suffix else path.name
        if _CLIP.fullmatch(name) and (path.suffix.lower() == suffix if suffix else path.is_dir()):
            if seen.setdefault(name, path) != path:
                raise DataError(
                    f"{folder} must have one clip {name}, but got {seen[name].name} and {path.name}; remove one"
                )
            clips[name.split("_")[0]].append(path)
    return clips


def _check_scene(folder: Path, layout: str, scene: str, scenes: Collection[str]) -> None:
    """Raise DataError unless the scene is one of the scenes with clips."""
    if scene not in scenes:
        found = f"only scenes {', '.join(sorted(scenes))}" if scenes else "no clips"
        raise DataError(f"{folder} must contain clips of scene {scene!r} in {layout}, but got {found}; {UNPACK}")


def _frames(folder: Path) -> list[Path]:
    """Return the frames of a clip, sorted by number; raise DataError if one is missing."""
    paths = find_images(folder, recursive=False)
    if not paths:
        raise DataError(f"{folder} must contain frames, but got none; {UNPACK}")
    for path in paths:
        if not path.stem.isdecimal():
            raise DataError(f"{path} must have a number for its name, but got {path.stem!r}; move it")
    paths.sort(key=lambda path: int(path.stem))
    for path, after in pairwise(paths):
        if int(after.stem) != int(path.stem) + 1:
            raise DataError(f"{folder} must have consecutive frames, but got {after.name} after {path.name}; {UNPACK}")
    return paths


def _load_rows(file: Path, axes: tuple[str, ...]) -> NDArray[np.generic]:
    """Open an array as a memory map, so that rows are read on access."""
    expected = f"a numeric NumPy array ({', '.join(axes)}{',' * (len(axes) == 1)})"
    try:
        rows = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise DataError(f"{file} must be {expected}, but got no such file; {UNPACK}") from None
    except (ValueError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} must be {expected}, but got the error {reason!r}; copy or unpack it again") from None
    if rows.ndim != len(axes) or rows.dtype.kind not in "biuf":
        raise DataError(f"{file} must be {expected}, but got {rows.dtype} {rows.shape}; use the official file")
    return rows
