"""Kinds of synthetic anomalies, and BGAD's boundary loss in the place of BCE, at equal numbers of training steps.

    python -m benchmarks.synthesis --textures tex --objects mvtec --seeds 0 1 --output benchmarks/results/synthesis

Perlin's textures are photographs of scikit-image, without the category's own. Appends a line per cell to cells.jsonl.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semflow import evaluate, fit
from semflow._optional import find_optional
from semflow.bases import SemanticGaussian
from semflow.data import MVTecAD
from semflow.detectors import Detector
from semflow.nn import FixedVariance
from semflow.objectives import Objective, Terms, boundary_loss, log_likelihood
from semflow.recipes import build
from semflow.synthesis import CutPaste, Perlin, Poisson

PHOTOGRAPHS = (
    "brick.png grass.png gravel.png astronaut.png camera.png cell.png chelsea.png coffee.png coins.png "
    "hubble_deep_field.jpg ihc.png moon.png retina.jpg rocket.jpg"
).split()
VARIANTS = {
    "sanflow": ("cut and paste", "perlin", "poisson", "boundary"),
    "memory_flow": ("cut and paste", "perlin", "poisson"),
    "cflow_ad": ("plain", "bce", "boundary"),
}
SIZES = {"toothbrush": 256}
STEPS = {"sanflow": {"toothbrush": 40, "": 96}, "memory_flow": {"": 96}, "cflow_ad": {"toothbrush": 6, "": 12}}


@dataclass(frozen=True)
class Boundary(Objective):
    """BGAD's loss: the boundary loss and the likelihood, for a standard normal that of the normal locations alone."""

    def __call__(
        self, z: Tensor, log_det: Tensor, event: Any, base: Any, statistics: Any = None,
        anomaly_mask: Tensor | None = None, ignore: Tensor | None = None,
    ) -> Terms:  # fmt: skip
        """Compute the loss of one scale."""
        alone = anomaly_mask is not None and statistics is None
        left = (anomaly_mask > 0) | (ignore > 0) if alone and ignore is not None else anomaly_mask if alone else ignore
        terms = super().__call__(z, log_det, event, base, statistics, anomaly_mask, left)
        log_p = log_likelihood(base.log_prob(z, statistics, None), log_det, event) / z.shape[1]
        loss = boundary_loss(log_p, torch.zeros_like(log_p) if anomaly_mask is None else anomaly_mask, ignore)
        return Terms(terms.total + loss, terms.nll, loss.detach(), terms.kl)


def make(recipe: str, variant: str, category: str, seed: int, photographs: str) -> tuple[Detector, Any]:
    """Return the detector and the synthetic anomalies of a cell."""
    settings: dict[str, Any] = {
        "backbone.name": "tf_efficientnet_lite0", "backbone.weights": "packaged",
        "image_size": SIZES.get(category, 128), "seed": seed,
    }  # fmt: skip
    settings |= {"couplings.blocks": 4, "couplings.position_channels": 128} if recipe == "sanflow" else {}
    detector = build(recipe, settings)
    nsa = Poisson(background=(20, 20)) if category == "toothbrush" else Poisson(resize=(0.5, 2.0), patches=4)
    synthesis = {"perlin": Perlin(photographs), "poisson": nsa, "plain": None}.get(variant, CutPaste())
    own = vars(detector.objective)
    if variant == "boundary":
        detector.objective = Boundary(**{**own, "bce": 0.0})
    elif variant == "bce":  # a standard normal has no anomalous distribution
        detector = Detector(
            detector.features, list(detector.flows), SemanticGaussian(), FixedVariance(1.0), detector.position,
            Objective(**{**own, "bce": 1.0}), detector.scorer, score_log_det=True,
        )  # fmt: skip
    return detector, synthesis


@contextmanager
def photographs(category: str) -> Iterator[str]:
    """Link the photographs, without the category's own, into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name in PHOTOGRAPHS:
            if Path(name).stem != category:
                (Path(folder) / name).symlink_to(find_optional("skimage") / "data" / name)
        yield folder


def main() -> None:
    """Measure the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--textures", required=True)
    add("--objects", required=True)
    add("--recipes", nargs="+", default=list(VARIANTS))
    add("--categories", nargs="+", default=["brick", "grass", "gravel", "toothbrush"])
    add("--variants", nargs="+")
    add("--seeds", nargs="+", type=int, default=[0, 1])
    add("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "cells.jsonl"
    cells = [
        (recipe, category, seed, variant)
        for seed in options.seeds for recipe in options.recipes for category in options.categories
        for variant in VARIANTS[recipe]
        if variant in (options.variants or [variant]) and (category != "toothbrush" or recipe != "memory_flow")
    ]  # fmt: skip
    lines = path.read_text().splitlines() if path.exists() else []
    done = {tuple(json.loads(line)[k] for k in ("recipe", "category", "seed", "variant")) for line in lines}
    torch.set_num_threads(1)
    for cell in cells:
        if cell in done:
            continue
        recipe, category, seed, variant = cell
        root, size = options.objects if category == "toothbrush" else options.textures, SIZES.get(category, 128)
        train, test = (MVTecAD(root, s, size, category=category, cache=s == "train") for s in ("train", "test"))
        with photographs(category) as folder:
            detector, synthesis = make(recipe, variant, category, seed, folder)
            steps = STEPS[recipe].get(category, STEPS[recipe][""])
            made = build(recipe, {"backbone": "resnet18", "backbone.weights": "random"}).provenance.training
            training = replace(made, steps=steps, seed=seed)
            began = time.process_time()
            fit(detector, train, training, synthesis=synthesis, device="cpu", progress=False)
        seconds = time.process_time() - began
        line = {
            "recipe": recipe, "category": category, "seed": seed, "variant": variant, "steps": steps,
            "metrics": evaluate(detector, test), "train_cpu_seconds": round(seconds, 1),
        }  # fmt: skip
        print(line, flush=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
