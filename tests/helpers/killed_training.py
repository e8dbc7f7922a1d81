"""Training killed by SIGKILL again and again, and resumed, in children of one process that has imported torch once.

python killed_training.py KILLS SEED FOLDER    prints counts as JSON; writes FOLDER/whole and FOLDER/killed
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import safetensors.torch
import torch

from helpers.small_detector import make_detector, make_images
from semflow.training import checkpoint, fit
from semflow.training.run import Run

EPOCHS = 4
PLACES = (
    "before the file",
    "in the middle of the file",
    "before the move",
    "after the move",
    "in the log",
    "after the log",
)


def train(folder: Path) -> None:
    """A checkpoint after every batch: 3 of them in each of 4 epochs."""
    torch.set_num_threads(1)
    fit(
        make_detector(),
        make_images(10),
        epochs=EPOCHS,
        output=folder,
        resume=True,
        checkpoint_seconds=0,
        progress=False,
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place: str, count: int) -> None:
    """Let this process die when it comes to a place for the `count`-th time."""
    left = count

    def due() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    save, replace, log = safetensors.torch.save_file, Path.replace, Run.log

    def saving(tensors: dict, file: Path, metadata: dict) -> None:
        if place == "before the file" and due():
            die()
        save(tensors, file, metadata)
        if place == "in the middle of the file" and due():
            os.truncate(file, file.stat().st_size // 2)
            die()

    def moving(self: Path, target: Path) -> Path:
        if place == "before the move" and due():
            die()
        moved = replace(self, target)
        if place == "after the move" and due():
            die()
        return moved

    def logging(self: Run, record: dict) -> None:
        if place == "in the log" and due():
            with (self.folder / checkpoint.LOG).open("a") as file:
                file.write('{"epoch": 1, "lo')
                file.flush()
                die()
        log(self, record)
        if place == "after the log" and due():
            die()

    safetensors.torch.save_file, Path.replace, Run.log = saving, moving, logging


def armed(place: str, count: int, folder: Path) -> None:
    arm(place, count)
    train(folder)


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(kills: int, seed: int, folder: Path) -> dict[str, object]:
    rng = random.Random(seed)
    began = time.monotonic()
    if ended(child(lambda: train(folder / "whole"))):
        raise SystemExit("the uninterrupted run has failed")
    length = time.monotonic() - began
    killed: dict[str, int] = {}
    rounds = ends = 0
    while sum(killed.values()) < kills:
        run = folder / "killed"
        if (run / checkpoint.MODEL).exists():  # it has come to its end between two kills: again from the start
            compare(folder)
            ends += 1
            for path in run.iterdir():
                path.unlink()
        rounds += 1
        if rng.random() < 0.5:
            place = PLACES[rounds % len(PLACES)]
            count = rng.randint(1, 4)
            code = ended(child(partial(armed, place, count, run)))
        else:
            place = "at a random time"
            pid = child(partial(train, run))
            time.sleep(rng.uniform(0, length / 2))
            os.kill(pid, signal.SIGKILL)
            code = ended(pid)
        if code == -signal.SIGKILL:
            killed[place] = killed.get(place, 0) + 1
        elif code:
            raise SystemExit(f"round {rounds}, {place}: a resumed run has failed with {code}")
    if ended(child(lambda: train(folder / "killed"))):
        raise SystemExit("the last resumed run has failed")
    compare(folder)
    seconds = time.monotonic() - began
    return {"kills": sum(killed.values()), "rounds": rounds, "places": killed, "runs": ends + 1, "seconds": seconds}


def compare(folder: Path) -> None:
    """The bytes of the model, and the log but for its times."""
    whole, resumed = ((folder / name / checkpoint.MODEL).read_bytes() for name in ("whole", "killed"))
    if whole != resumed:
        raise SystemExit("a resumed run has come to another model")
    logs = []
    for name in ("whole", "killed"):
        lines = [json.loads(line) for line in (folder / name / checkpoint.LOG).read_text().splitlines()]
        logs.append([{k: v for k, v in line.items() if k != "seconds"} for line in lines])
    if logs[0] != logs[1]:
        raise SystemExit(f"a resumed run has another log: {logs[1]}")
    left = sorted(path.name for path in (folder / "killed").iterdir())
    if left != [checkpoint.CONFIG, checkpoint.LOG, checkpoint.MODEL, checkpoint.SUMMARY]:
        raise SystemExit(f"a resumed run has left other files: {left}")


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
