"""Speed of each recipe's training step and inference on given features, compared with the floor of its arithmetic.

A training step is that of the trainer (`train_on_batch` with Adam), inference maps features to anomaly map and score;
the backbone is measured separately. Operations are counted by torch's counter for the same loss and score on tensors
without data, where flows run as plain operators: matrix products and convolutions, without those for gradients that are
not needed. The floor is that count over the rate of a large square product, measured in the same run with the same
threads. A fraction may exceed 1, because some algorithms of convolutions have fewer operations and the rate of products
depends on their shape.
"""

import copy
import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from semflow.recipes import build
from semflow.training.stepping import adam, train_on_batch

from .timing import (
    Ratio,
    Report,
    Variant,
    best,
    in_turns,
    peaks,
    ratio,
    square_products,
    using_threads,
    watching_memory,
)

__all__ = ["RECIPES", "Case", "flops", "measure_recipes", "recipe_peaks"]

RECIPES = ("sanflow", "cflow_ad", "fastflow")


class Case:
    """A recipe with random weights, and a batch of random images with features and masks."""

    def __init__(self, recipe: str, backbone: str, batch: int, blocks: int, size: int = 256, **more: Any) -> None:
        random = {"backbone": backbone, "backbone.weights": "random"}
        self.detector = build(recipe, {**random, "image_size": size, "couplings.blocks": blocks, **more})
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(batch, 3, size, size, generator=generator)
        self.masks: Tensor | None = None
        if self.detector.provenance.synthesis is not None:  # one image in four is normal, the others contain a square
            self.masks = torch.zeros(batch, size, size, dtype=torch.bool)
            self.masks[torch.arange(batch) % 4 > 0, size // 4 : size // 2, size // 4 : size // 2] = True
        self.maps = self.detector.features(self.images)
        self.detector.prepare([(self.images, self.maps)])

    def train(self) -> Callable[[], object]:
        """Return a training step; with learning rate 0 every step uses the same weights."""
        detector = self.detector.train()
        training = detector.provenance.training
        optimizer = adam(detector, training)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return lambda: train_on_batch(
            detector, optimizer, detector.provenance.training, self.images, self.masks, self.maps
        )

    def infer(self) -> Callable[[], object]:
        """Return inference from features to anomaly map and score."""
        detector = self.detector.eval()
        size = (self.images.shape[2], self.images.shape[3])

        def run() -> object:
            with torch.inference_mode():
                return detector.scorer(detector.log_probs(self.images, self.maps)[0], size)

        return run

    def features(self) -> Callable[[], object]:
        """Return the backbone, from images to features."""
        return lambda: self.detector.features(self.images)


def flops(case: Case, kind: str) -> int:
    """Count the floating-point operations of matrix products and convolutions."""
    if kind == "features":
        with FlopCounterMode(display=False) as counter:
            case.detector.features(case.images)
        return counter.get_total_flops()
    detector = copy.deepcopy(case.detector).to("meta")
    images, *maps = (x.to("meta") for x in (case.images, *case.maps))
    masks = None if case.masks is None else case.masks.to("meta")
    with FlopCounterMode(display=False) as counter:
        if kind == "train":
            detector.train().loss(images, masks, maps).total.backward()
        else:
            with torch.no_grad():
                detector.eval().log_probs(images, maps)
    return counter.get_total_flops()


def recipe_peaks(recipe: str, backbone: str, batch: int, blocks: int) -> list[int]:
    """Return the peak bytes of inference and of a training step, above model, features and images.

    Gradients and Adam's state count.
    """
    case, found = Case(recipe, backbone, batch, blocks), []
    for make in (case.infer, case.train):
        run = make()
        with watching_memory("cpu") as above:
            run()
        found.append(above())
    return found


def measure_recipes(report: Report, variant: Variant, blocks: int, rounds: int, memory: bool = False) -> None:
    """Measure rows `recipes` and the ratios `floor_RECIPE_train` and `floor_RECIPE_infer`."""
    with using_threads(variant.threads):
        products, operations = square_products()
        for recipe in RECIPES:
            for kind in ("train", "infer") if recipe == "cflow_ad" else ("train", "infer", "features"):
                case = Case(recipe, variant.backbone, variant.batch, blocks)
                seconds = in_turns({kind: getattr(case, kind)(), **products}, rounds)
                gemm = best(seconds, list(products), variant.by)
                work = flops(case, kind)
                found = ratio(seconds, gemm, kind, variant.by)
                share: Ratio = {
                    key: round(value * work / operations, 3) if isinstance(value, float) else value
                    for key, value in found.items()
                }
                time = {clock: statistics.median(getattr(s, clock) for s in seconds[kind]) for clock in ("wall", "cpu")}
                rate = operations / statistics.median(getattr(s, variant.by) for s in seconds[gemm])
                row: dict[str, Any] = {
                    "recipe": recipe, "kind": kind, "backbone": variant.backbone, "batch": variant.batch,
                    "blocks": blocks, "threads": variant.threads, "wall_s": round(time["wall"], 4),
                    "cpu_s": round(time["cpu"], 4), "images_per_s": round(variant.batch / time[variant.by], 2),
                    "gflop": round(work / 1e9, 1), "gemm_gflop_per_s": round(rate / 1e9, 1),
                    "floor_s": round(work / rate, 4), "of_floor": share["median"],
                }  # fmt: skip
                report.row("recipes", **row)
                if kind != "features":
                    report.ratio(f"floor_{recipe}_{kind}{variant.suffix}", share)
                del case
                gc.collect()
            if memory:
                infer, train = peaks(recipe_peaks, recipe, variant.backbone, variant.batch, blocks)
                report.row(
                    "memory", what=f"MiB of {recipe}", backbone=variant.backbone, batch=variant.batch, blocks=blocks,
                    infer=infer, train=train,
                )  # fmt: skip
