"""Shares of `semflow predict` in its CPU time, for `end_to_end`: what each part takes alone, and the rest.

Decoding, features, flow and score are repeated in this process on the same images in batches of 8. The time per image
is the difference between a process for all images and one for a single image. The part of it that is not decoding,
features, flow or score is writing: pictures, maps and the digest of the file. The rest is the start, tables and page.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from semflow.data import load_image
from semflow.recipes import load

from .timing import Seconds, all_threads, in_turns, using_threads
from .whole import Bench

__all__ = ["measure_parts"]

BATCH = 8


def measure_parts(bench: Bench, method: str, backbone: str, side: int, rounds: int) -> dict[str, Any]:
    """Return CPU and wall seconds for an image of each part, shares of the whole process, and how near the floor is."""
    images, model = bench.pictures("images", side), bench.model("semflow", method, backbone)
    paths = sorted(images.iterdir())
    with using_threads(all_threads()):
        parts = alone(model, paths, rounds)
    wholes = [bench.predict("semflow", method, backbone, images) for _ in range(rounds)]
    singles = [bench.predict("semflow", method, backbone, bench.pictures("one", side)) for _ in range(rounds)]
    found: dict[str, Any] = {"images": len(paths), "seconds of an image": {}}
    shares = {}
    for clock in ("cpu", "wall"):
        whole, single = (statistics.median(getattr(one, clock) for one in some) for some in (wholes, singles))
        each = {name: getattr(seconds, clock) for name, seconds in parts.items()}
        every = max((whole - single) / max(1, len(paths) - 1), sum(each.values()))
        each["writing"] = every - sum(each.values())
        found["seconds of an image"][clock] = {name: round(value, 5) for name, value in each.items()}
        totals = {name: len(paths) * value for name, value in each.items()}
        totals["start"] = whole - sum(totals.values())
        shares[clock] = {name: round(value / whole, 3) for name, value in totals.items()}
        found[f"{clock} of the process"] = round(whole, 3)
    return found | {"shares": shares["cpu"], "near_floor": shares["wall"]["features"]}


def alone(model: Path, paths: list[Path], rounds: int) -> dict[str, Seconds]:
    """Return the seconds of an image of each part that can run alone."""
    detector = load(model, device="cpu")
    size = detector.provenance.loaded_size
    images = torch.stack([load_image(path, size) for path in paths[:BATCH]])
    with torch.inference_mode():
        maps = detector.feature_maps(images)

        def without_grad(run: Callable[[], object]) -> Callable[[], object]:
            def inference() -> object:
                with torch.inference_mode():
                    return run()

            return inference

        runs: dict[str, Callable[[], object]] = {
            "decoding": lambda: [load_image(path, size) for path in paths[:BATCH]],
            "features": without_grad(lambda: detector.feature_maps(images)),
            "flow": without_grad(lambda: detector.log_probs(images, maps)),
            "flow and score": without_grad(lambda: detector(images, maps)),
        }
        measured = in_turns(runs, rounds)
    median = {
        name: Seconds(*(statistics.median(values) / len(images) for values in zip(*seconds, strict=True)))
        for name, seconds in measured.items()
    }
    both, flow = median.pop("flow and score"), median["flow"]
    return median | {"score": Seconds(*(max(0.0, a - b) for a, b in zip(both, flow, strict=True)))}
