"""Frames of a video file, read with PyAV (the extra `video`), which is imported when a video is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from semflow._optional import import_optional
from semflow.errors import DataError


class VideoFrames:
    """Frames of a video, indexed in decoding order from the start.

    The constructor reads the packets, which give the number of frames and the key frames, and decodes none. Reading
    forward decodes every frame once. Other reads start at the preceding key frame, or at the beginning if the codec
    reorders frames (B-frames), because time stamps in AVI files are then not reliable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_complete(path)
        with closing(self._container()) as container, self._data_errors():
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            self._keys = np.flatnonzero([packet.is_keyframe for packet in packets])
            self._times = [packet.dts for packet in packets]
            self._in_order = not stream.codec_context.has_b_frames and None not in self._times
        if not self._times:
            raise DataError(f"{path} must be a video with frames, but got none; replace or delete it")
        self._position: _Position | None = None

    def __len__(self) -> int:
        return len(self._times)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_position": None}

    def read(self, index: int) -> Image.Image:
        """Decode frame `index` to RGB at its own size; raise DataError if the video ends or is broken before it."""
        with self._data_errors():
            position = self._seek(index)
            for frame in position.frames:
                position.next += 1
                if position.next > index:
                    return _rgb(frame)
        raise DataError(f"{self.path} must have {len(self)} frames, but got {position.next}; copy or unpack it again")

    def close(self) -> None:
        """Close the file; a later `read` opens it again."""
        if self._position is not None:
            if self._position.process == os.getpid():
                self._position.container.close()
            self._position = None

    def _seek(self, index: int) -> _Position:
        """Return a position from which decoding forward reaches a frame."""
        start = int(self._keys[self._keys <= index].max(initial=0)) if self._in_order else 0
        now = self._position
        # A decoder belongs to the process that opened it: a forked worker opens its own.
        if now is not None and now.process == os.getpid() and start <= now.next <= index:
            return now
        self.close()
        self._position = self._start_at(start)
        return self._position

    def _start_at(self, start: int) -> _Position:
        container = self._container()
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # data loaders already work in parallel
        if start:
            container.seek(self._times[start], stream=stream)
            frames = container.decode(stream)
            first = next(frames, None)
            if first is not None and first.pts == self._times[start]:
                return _Position(container, chain([first], frames), start)
            container.close()  # the seek missed the key frame
            return self._start_at(0)
        return _Position(container, container.decode(stream), 0)

    def _container(self) -> Any:
        av = import_optional("av")
        with self._data_errors():
            container = av.open(os.fspath(self.path))
        if not container.streams.video:
            container.close()
            raise DataError(f"{self.path} must be a video, but got no video stream; replace or delete it")
        return container

    @contextmanager
    def _data_errors(self) -> Iterator[None]:
        """Convert errors of FFmpeg to DataError."""
        try:
            yield
        except import_optional("av").FFmpegError as error:
            reason = " ".join(str(error.strerror or error).split())
            raise DataError(
                f"{self.path} must be a complete video, but got the error {reason!r}; copy or unpack it again"
            ) from None


class _Position:
    """An open file, the frames that decoding yields next, and the index of the first of them."""

    def __init__(self, container: Any, frames: Iterator[Any], following: int) -> None:
        self.container, self.frames, self.next = container, frames, following
        self.process = os.getpid()


def _rgb(frame: Any) -> Image.Image:
    # With a temporary converter: `frame.to_image` keeps one with threads in the frame, and a forked worker that
    # releases its parent's frame would wait for threads that do not exist in the worker.
    from av.video.reformatter import VideoReformatter

    converter: Any = VideoReformatter()
    return cast(Image.Image, converter.reformat(frame, format="rgb24").to_image())


def _check_complete(path: Path) -> None:
    """Raise DataError if the file does not exist, or an AVI file is shorter than its header declares."""
    if not path.is_file():
        raise DataError(f"{path} must be a video, but got no such file; check the path")
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        expected, size = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
        if size < expected:
            raise DataError(
                f"{path} must have {expected} bytes according to its header, but got {size}, a truncated file; "
                "copy or unpack it again"
            )
