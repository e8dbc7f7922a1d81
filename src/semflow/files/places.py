"""Places of outputs: links are followed, and existing folders and mounted files are filled instead of replaced.

A mount point, such as a volume of a container, cannot be renamed or removed. Renaming onto a link replaces the link.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Entries that systems create in folders of users; a folder with nothing else is empty.
SYSTEM = frozenset(
    {"lost+found", "@eaDir", ".DS_Store", "Thumbs.db", "desktop.ini", "System Volume Information", "$RECYCLE.BIN"}
)
MOVING = "moving.json"


def real_path(path: str | Path) -> Path:
    """Return the absolute path of an output; of a link, that of its target, which need not exist."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path.absolute()


def is_stream(path: Path) -> bool:
    """Return True for a device, a pipe or a process's stream such as /dev/stdout, which must never be replaced."""
    named = path.absolute().as_posix().startswith(("/dev/std", "/dev/fd/", "/proc/"))
    return named or (path.exists() and not path.is_file() and not path.is_dir())


def hidden_stage(path: Path) -> Path:
    """Return the hidden folder in which `path` is made: inside it if it is a folder, otherwise beside it."""
    name = f".{path.name}.partial"
    beside = path.with_name(name)  # kept by a command that was interrupted before somebody created `path`
    return path / name if path.is_dir() and not beside.exists() else beside


def occupants(path: Path) -> list[str]:
    """Return the names in a folder that neither the system nor an unfinished output has put there."""
    own = SYSTEM | set(_moving(hidden_stage(path)))
    return sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name not in own and not (entry.name.startswith(".") and entry.name.endswith(".partial"))
    )


def temporary_folder(path: Path) -> Path:
    """Return the folder for the temporary file of `path`: its own if possible, so that renaming is atomic."""
    own = path.parent
    return Path(tempfile.gettempdir()) if is_stream(path) or _only_file_is_writable(path, own) else own


def put_file(file: Path, path: Path) -> None:
    """Move a finished file to `path`, or copy its content if `path` cannot be replaced."""
    if is_stream(path):
        with file.open("rb") as source, path.open("ab") as stream:
            shutil.copyfileobj(source, stream)
        return
    try:
        file.replace(path)
    except OSError:
        if not path.is_file():
            raise
        with file.open("rb") as source, path.open("r+b") as target:
            shutil.copyfileobj(source, target)
            target.truncate()
            target.flush()
            os.fsync(target.fileno())


def put_folder(folder: Path, path: Path, replaced: Sequence[str] = (), stage: Path | None = None) -> None:
    """Move a finished folder to `path`; a folder that is there is filled, with JSON files, which mark results, last.

    `replaced` names entries of `path` that move into `stage` first. After an error everything is where it was.
    """
    if not path.is_dir():
        folder.replace(path)
        return
    moves = []
    if stage is not None and replaced:
        (stage / "replaced").mkdir(exist_ok=True)
        moves = [(path / name, stage / "replaced" / name) for name in replaced]
    entries = sorted(folder.iterdir(), key=lambda entry: (entry.is_file(), entry.suffix == ".json", entry.name))
    moves += [(entry, path / entry.name) for entry in entries]
    done = []
    try:
        for source, target in moves:
            done.append((source, target))
            shutil.move(source, target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists() and not source.exists():
                shutil.move(target, source)
        raise


def begin_moving(stage: Path, folder: Path) -> None:
    """Record the entries that move into an existing folder, so that `undo_moving` finds them after a kill."""
    (stage / MOVING).write_text(json.dumps(sorted(entry.name for entry in folder.iterdir())), encoding="utf-8")


def undo_moving(stage: Path, folder: Path, path: Path) -> None:
    """Move back what a killed process had moved from `folder` to `path`."""
    for name in _moving(stage):
        if (path / name).exists() and not (folder / name).exists():
            shutil.move(path / name, folder / name)
    (stage / MOVING).unlink(missing_ok=True)


def _moving(stage: Path) -> list[str]:
    try:
        found = json.loads((stage / MOVING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in found if isinstance(name, str) and Path(name).name == name]


def _only_file_is_writable(path: Path, folder: Path) -> bool:
    """Return True for a file that is mounted into a read-only folder, for example."""
    return path.is_file() and os.access(path, os.W_OK) and not os.access(folder, os.W_OK | os.X_OK)
