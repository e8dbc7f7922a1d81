"""`semflow predict --watch`: score images as they arrive in a folder, each one once and whole.

An image is done when its line is in scores.jsonl, after the files that the line names and before the image is moved. So
a command that was killed scores no image twice, loses none, and completes a move.
"""

import json
import math
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from semflow._optional import import_optional
from semflow._validation import counted
from semflow._version import __version__
from semflow.data import ImageDataset
from semflow.data.arriving import Arrivals, Arrived, Version
from semflow.data.dataset import Record as ImageRecord
from semflow.data.reading import has_more_pages
from semflow.data.regions import matched_regions
from semflow.data.walking import scan, scan_one
from semflow.detectors import Predictor
from semflow.errors import ConfigError, DataError
from semflow.files import refuse_occupied, refuse_unwritable, write_atomic, writing
from semflow.files.lines import JSONLines, json_lines
from semflow.files.moving import free_place, move_file
from semflow.training.evaluation import images_at_once

from .console import say
from .inputs import PAGES, fingerprint, load_detector, reading
from .loaded import Images, Loaded
from .options import Predict
from .predict import score_images
from .tiling import check_tiles

LOG, ABOUT = "scores.jsonl", "watch.json"
STEP, WAIT = 5, 50  # milliseconds that watchfiles collects changes, and after which files are looked at again
EVERY, SHARE = 2.0, 20  # seconds between searches of the whole folder, and of their time at most 1 / SHARE


def watch(options: Predict, folder: Path) -> int:
    """Score the images in a folder and those that arrive in it, until the process is asked to stop.

    Returns:
        Exit code: 1 if there were files or pages that were not read, else 0.
    """
    watchfiles = import_optional("watchfiles")
    _check_folders(options, folder)
    about = _about(options, folder)
    detector = load_detector(options.model, options.device, options.false_alarm_rate, options.category)
    check_tiles(options, detector.provenance)
    with json_lines(options.output / LOG) as log:
        write_atomic(options.output / ABOUT, about)
        watched = _Watched(options, folder, detector, log)
        with _stopping() as stop:
            print(f"watching {folder}; stop with Ctrl-C", file=sys.stderr, flush=True)
            real, searched, took = folder.resolve(), -math.inf, 0.0
            changes = watchfiles.watch(
                real, watch_filter=None, step=STEP, debounce=WAIT, rust_timeout=WAIT, yield_on_timeout=True,
                stop_event=stop, ignore_permission_denied=True,
            )  # fmt: skip
            for changed in changes:  # the first ones come when the watch has begun
                if time.monotonic() > searched + max(EVERY, SHARE * took):
                    start = time.monotonic()
                    watched.search()
                    searched = time.monotonic()
                    took = searched - start
                for _, name in sorted(changed):
                    watched.note(folder / Path(name).relative_to(real))
                watched.score(stop)
        print(f"stopped; scored {counted(watched.scored, 'image')}", file=sys.stderr)
    return int(bool(watched.unread))


class _Watched:
    """The images of a folder: those in the log, and those that wait."""

    def __init__(self, options: Predict, folder: Path, detector: Predictor, log: JSONLines) -> None:
        self.options, self.folder, self.detector, self.log = options, folder, detector, log
        self.scored = 0
        self.unread: set[str] = set()  # images of this command, wholly or in part
        read = reading(detector, options.region)
        self._regions = read["regions"]
        self._dataset = ImageDataset((), detector.provenance.loaded_size, root=folder, resize=read["resize"])
        self._arrivals = Arrivals(self._read)
        own = (path.resolve() for path in (options.output, options.move_to) if path is not None)
        self._own = [folder / path.relative_to(real) for path in own if path.is_relative_to(real := folder.resolve())]
        self._done: dict[str, dict[str, Any]] = {}
        self._lines: Counter[str] = Counter()
        for line in log.read():
            if isinstance(name := line.get("image"), str):
                self._done[name] = line
                self._lines[name] += 1
        self._retried: set[str] = set()  # images with errors of an earlier command
        self._told: set[str] = set()
        self._searched = False

    def search(self) -> None:
        """Find the images that are there, and name what is passed over."""
        try:
            images, passed_over = scan(self.folder)
        except DataError as error:
            if not self._searched or not self.folder.is_dir():
                raise
            self._tell(str(error))  # such as a folder that was removed at this moment
            return
        self._searched = True
        for path in images:
            self._note(path)
        for path, reason, unread in passed_over:
            name = path.relative_to(self.folder).as_posix()
            if self._is_own(path):
                continue
            text = f"{path} is not read: {reason}"
            if not unread:
                self._tell(f"passed over {name!r}: {reason}")
                continue
            self.unread.add(name)
            if self._done.get(name, {}).get("error") != text:
                self._add({"image": name, "error": text}, Version.of(path) or Version(0, 0), None)

    def note(self, path: Path) -> None:
        """Note the images at a path that has changed."""
        with suppress(DataError):  # of a folder that is gone; the next search finds the others
            for image in () if self._is_own(path) else scan_one(path, self.folder).images:
                self._note(image)

    def score(self, stop: threading.Event) -> None:
        """Score the images that are whole by now, a batch at a time."""
        batch: list[Arrived[Loaded]] = []
        for arrived in self._arrivals.whole():
            batch.append(arrived)
            if len(batch) == images_at_once(self.detector, self.options.batch_size) or stop.is_set():
                self._score(batch)
                batch = []
            if stop.is_set():
                return
        self._score(batch)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            print(text, file=sys.stderr, flush=True)

    def _is_own(self, path: Path) -> bool:
        return any(path.is_relative_to(own) for own in self._own)

    def _note(self, path: Path) -> None:
        if self._is_own(path):
            return
        name = path.relative_to(self.folder).as_posix()
        line = self._done.get(name)
        if line is None or _version(line) != Version.of(path) or ("error" in line and name not in self._retried):
            self._arrivals.note(path)
        else:
            if "warning" in line:
                self.unread.add(name)
            self._move(line)

    def _read(self, path: Path) -> Loaded:
        self._dataset.records = (ImageRecord(path, -1),)
        if self._regions is not None:
            self._dataset.regions = matched_regions([path], self._regions)
        _, loaded = Images(self._dataset, [(0, path.name)])[0]
        if isinstance(loaded, str):
            raise DataError(loaded)
        return loaded

    def _score(self, batch: list[Arrived[Loaded]]) -> None:
        waiting: dict[str, tuple[str, Version]] = {}  # by the place of the outputs
        images: dict[str, Loaded] = {}
        for path, version, content in batch:
            name = path.relative_to(self.folder).as_posix()
            if isinstance(content, str):
                self._fail(name, version, content)
            else:
                place = f"{name}~{self._lines[name] + 1}" if self._lines[name] else name
                waiting[place], images[place] = (name, version), content
        try:
            for write in score_images(self.options.output, self.options, self.detector, images):
                record, _ = write()
                name, version = waiting.pop(record.image)
                kind = {True: "anomalous", False: "good", None: ""}[record.is_anomalous]
                line = {**asdict(record), "image": name}
                if has_more_pages(self.folder / name):
                    line["warning"] = f"not read: {PAGES}"
                self._add(line, version, kind)
                self.scored += 1
        except ConfigError as error:  # its score is not finite; the next search finds the images after it
            self._fail(*next(iter(waiting.values())), str(error))

    def _fail(self, name: str, version: Version, error: str) -> None:
        self._retried.add(name)
        self.unread.add(name)
        last = self._done.get(name, {})
        if (last.get("error"), _version(last)) != (error, version):
            self._add({"image": name, "error": error}, version, "unreadable")
        else:  # nothing has changed since the last command
            self._move(last)

    def _add(self, line: dict[str, Any], version: Version, kind: str | None) -> None:
        keep = self.unread.add if "error" in line or "warning" in line else self.unread.discard
        keep(line["image"])
        target = None
        if self.options.move_to is not None and kind is not None:
            target = str(free_place(self.options.move_to / kind / line["image"]))
        line |= {
            "moved_to": target,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **version._asdict(),
        }
        text = self.log.append(line)
        self._done[line["image"]] = line
        self._lines[line["image"]] += 1
        self._move(line)
        say(text)

    def _move(self, line: Mapping[str, Any]) -> None:
        """Move an image that is done, unless it has been replaced since."""
        name, target = line["image"], line.get("moved_to")
        path = self.folder / name
        if self.options.move_to is None or target is None or Version.of(path) != _version(line):
            return
        with writing(Path(target), "run the same command again to continue"):
            moved = move_file(path, Path(target))
        if str(moved) != target:
            print(f"moved {name!r} to {moved}, since {target} is another file", file=sys.stderr)


def _version(line: Mapping[str, Any]) -> Version:
    return Version(line.get("bytes", -1), line.get("modified_ns", -1))


def _check_folders(options: Predict, folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"--watch must be a folder, but got {folder}; create it")
    if options.input is not None:
        raise ConfigError(f"--input must be left out with --watch, but got {options.input}")
    if folder.resolve().is_relative_to(options.output.resolve()):
        raise ConfigError(f"--output must not hold the folder of --watch, but got {options.output}")
    if options.move_to is not None:
        if options.move_to.resolve() == folder.resolve():
            raise ConfigError(f"--move-to must be another folder than --watch, but got {options.move_to}")
        refuse_unwritable(options.move_to / "image")
        refuse_unwritable(folder / "image")
    refuse_occupied(options.output, replaces=ABOUT)


def _about(options: Predict, folder: Path) -> str:
    """Return what the scores in the output folder are of; raise DataError if those that it has are of others."""
    about = {
        "semflow": __version__, "model": str(options.model), "model_digest": fingerprint(options.model),
        "watched": str(folder.resolve()), "false_alarm_rate": options.false_alarm_rate, "category": options.category,
    }  # fmt: skip
    try:
        found = json.loads((options.output / ABOUT).read_bytes())
        kept = ("model_digest", "watched", "false_alarm_rate", "category")
        same = all(found.get(name) == about[name] for name in kept)
    except FileNotFoundError:
        same = True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise DataError(
            f"{options.output} must hold the scores of this model, rate, category and folder, but got others; choose "
            "another location"
        )
    return json.dumps(about, indent=2) + "\n"


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set the event that is yielded at the first SIGINT or SIGTERM; a second one interrupts the work as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = [(number, signal.signal(number, ask)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)
