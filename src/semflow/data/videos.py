"""Single frames of a video file, through PyAV (the extra `video`), which is imported when a video is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semflow._optional import import_optional
from semflow.errors import DataError

__all__ = ["VideoFrames"]


class VideoFrames:
    """The frames of a video, each by its index in the order of decoding from the start.

    Opening reads the packets, which tells how many frames there are and where decoding may begin, and decodes none.
    Reading forwards decodes every frame once. Reading elsewhere begins at the key frame before, if the codec keeps
    the order of the frames; with one that reorders them (B-frames), where time stamps in AVI files are not to be
    trusted, it begins at the start of the video: right, and slow when shuffled.

    Of a process, only the reading position is lost when it is forked or pickled for workers.

    Args:
        path: the file, in any format of FFmpeg.

    Raises:
        ConfigError: PyAV is not installed.
        DataError: there is no such file, it is no video, or it is cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_whole(path)
        container = self._container()
        try:
            with self._explained():
                stream = container.streams.video[0]
                packets = [packet for packet in container.demux(stream) if packet.size]
                self._in_order = not stream.codec_context.has_b_frames and all(
                    packet.dts is not None for packet in packets
                )
                self._keys = np.flatnonzero([packet.is_keyframe for packet in packets])
                self._times = [packet.dts for packet in packets]
        finally:
            container.close()
        if not self._times:
            raise DataError(f"{path}: expected a video with frames, but it has none; replace or delete it.")
        self._position: _Position | None = None

    def __len__(self) -> int:
        return len(self._times)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_position": None}

    def read(self, index: int) -> Image.Image:
        """Frame `index`, at its own size and in RGB.

        Raises:
            DataError: the video breaks off or is broken before it.
        """
        with self._explained():
            position = self._placed(index)
            for frame in position.frames:
                position.next += 1
                if position.next > index:
                    return _rgb(frame)
        raise DataError(
            f"{self.path}: expected {len(self)} frames, but it ends after {position.next}; copy or unpack it again."
        )

    def close(self) -> None:
        """Let go of the open file; a later `read` opens it again."""
        if self._position is not None:
            if self._position.process == os.getpid():
                self._position.container.close()
            self._position = None

    def _placed(self, index: int) -> _Position:
        """A position from which decoding forwards comes to a frame."""
        start = int(self._keys[self._keys <= index].max(initial=0)) if self._in_order else 0
        now = self._position
        # A decoder belongs to the process that opened it: a forked worker opens its own.
        if now is not None and now.process == os.getpid() and start <= now.next <= index:
            return now
        self.close()
        self._position = self._started(start)
        return self._position

    def _started(self, start: int) -> _Position:
        container = self._container()
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # data loaders work in parallel already
        if start:
            container.seek(self._times[start], stream=stream)
            frames = container.decode(stream)
            first = next(frames, None)
            if first is not None and first.pts == self._times[start]:
                return _Position(container, _chained(first, frames), start)
            container.close()  # the seek went astray: begin at the start instead
            return self._started(0)
        return _Position(container, container.decode(stream), 0)

    def _container(self) -> Any:
        av = import_optional("av")
        with self._explained():
            container = av.open(os.fspath(self.path))
        if not container.streams.video:
            container.close()
            raise DataError(f"{self.path}: expected a video, but it holds no pictures; replace or delete it.")
        return container

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except import_optional("av").FFmpegError as error:
            reason = " ".join(str(error.strerror or error).split())
            raise DataError(
                f"{self.path}: expected a whole video that FFmpeg reads, but: {reason}; copy or unpack it again."
            ) from None


class _Position:
    """An open file, the frames that decoding yields next, and the index of the first of them."""

    def __init__(self, container: Any, frames: Iterator[Any], following: int) -> None:
        self.container, self.frames, self.next = container, frames, following
        self.process = os.getpid()


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _rgb(frame: Any) -> Image.Image:
    # By a converter that is gone afterwards: `frame.to_image` leaves one with threads in the frame, and a forked worker
    # that lets go of its parent's frame would wait for threads that it does not have.
    from av.video.reformatter import VideoReformatter

    converter: Any = VideoReformatter()
    image: Image.Image = converter.reformat(frame, format="rgb24").to_image()
    return image


def _check_whole(path: Path) -> None:
    """Raise DataError for a file that is not there, or an AVI file shorter than its own header says."""
    if not path.is_file():
        raise DataError(f"{path}: expected a video, but there is none; check the path.")
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        expected, size = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
        if size < expected:
            raise DataError(
                f"{path}: expected {expected} bytes, as its header says, but it has {size}: it is cut short; "
                "copy or unpack it again."
            )
