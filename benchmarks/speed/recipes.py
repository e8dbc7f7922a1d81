"""Every recipe by itself: a training step and inference on given features, against the floor of its arithmetic.

A training step is the trainer's own (`train_on_batch`, Adam included), inference is from features to anomaly map and
score; the backbone is measured beside them. Work is counted by torch's counter over the same loss and the same score on
tensors without data, where every flow runs as the plain composition of its operators: matrix products and
convolutions, without those that no gradient is wanted of. The floor is that count over the rate of a large square
product, measured in the same run with the same threads. A fraction may pass 1: convolutions have algorithms with fewer
operations, and a product's rate depends on its shape.
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
    """A recipe with random weights, and a batch of random images with their features and masks."""

    def __init__(self, recipe: str, backbone: str, batch: int, blocks: int, size: int = 256, **more: Any) -> None:
        random = {"backbone": backbone, "backbone.weights": "random"}
        self.detector = build(recipe, {**random, "image_size": size, "couplings.blocks": blocks, **more})
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(batch, 3, size, size, generator=generator)
        self.masks: Tensor | None = None
        if self.detector.provenance.synthesis is not None:  # one image of four is normal, the others hold a square
            self.masks = torch.zeros(batch, size, size, dtype=torch.bool)
            self.masks[torch.arange(batch) % 4 > 0, size // 4 : size // 2, size // 4 : size // 2] = True
        self.maps = self.detector.features(self.images)
        self.detector.prepare([(self.images, self.maps)])

    def train(self) -> Callable[[], object]:
        """A training step; the learning rate is 0, so that every step works on the same weights."""
        detector = self.detector.train()
        training = detector.provenance.training
        optimizer = adam(detector, training)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return lambda: train_on_batch(
            detector, optimizer, detector.provenance.training, self.images, self.masks, self.maps
        )

    def infer(self) -> Callable[[], object]:
        """Features to anomaly map and score."""
        detector = self.detector.eval()
        size = (self.images.shape[2], self.images.shape[3])

        def run() -> object:
            with torch.inference_mode():
                return detector.scorer(detector.log_probs(self.images, self.maps)[0], size)

        return run

    def features(self) -> Callable[[], object]:
        """Images to features."""
        return lambda: self.detector.features(self.images)


def flops(case: Case, kind: str) -> int:
    """Floating-point operations of matrix products and convolutions that the work of a kind consists of."""
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
    """Bytes that inference and a training step need at their peak above model, features and images.

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
    """Rows `recipes`, and `floor_RECIPE_train` and `_infer` with the variant's suffix."""
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
