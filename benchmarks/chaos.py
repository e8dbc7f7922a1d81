"""Show how a rounding error grows in SANFlow's training, and which term makes it grow.

    python -m benchmarks.chaos --data mvtec --category toothbrush --json benchmarks/results/chaos.json

Two detectors are trained on the same batches, one from weights multiplied by 1 + 1e-7, the last digit of float32. Their
distance is that of all trained weights, relative to their norm. Each variant changes one thing. `per step` is the
largest mean growth of the distance over six steps; `gradient of h` and `of the flows` are the relative differences of
gradients in the last step, `score` is the largest difference of scores of test images. Feature maps are computed once,
so that all variants see the same.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from semflow.data import collate, open_dataset
from semflow.detectors import Detector
from semflow.flows import fused_kernels
from semflow.nn import statistics_network, subnets
from semflow.recipes import build
from semflow.synthesis import SyntheticAnomalies
from semflow.training import TrainingConfig
from semflow.training.stepping import adam, train_on_batch

from .shared.figures import markdown_table
from .shared.record import provenance, write_json

SIZE, WINDOW = 4, 6  # images of a batch, steps over which the growth is averaged
SMOOTH = SimpleNamespace(**{**vars(F), "relu": F.silu, "relu_": F.silu})


@dataclass(frozen=True)
class Variant:
    """One change: settings of the recipe, of Adam, of the network h (`smooth`, `norms`), or of the precision."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    start: float = 1e-7
    dtype: torch.dtype = torch.float32
    eps: float = 1e-8
    sgd: bool = False
    norms: bool = True
    smooth: Sequence[Any] = ()


VARIANTS: dict[str, Variant] = {
    "default": Variant(),
    "variance fixed, no network h": Variant({"statistics.variance": "fixed"}),
    "ReLU of h replaced by SiLU": Variant(smooth=(statistics_network,)),
    "ReLU of h and of the flows replaced by SiLU": Variant(smooth=(statistics_network, subnets)),
    "no batch norm in h": Variant(norms=False),
    "no KL term": Variant({"statistics.kl": 0.0}),
    "no BCE term": Variant({"statistics.bce": 0.0}),
    "only normal images, no BCE term": Variant({"synthesis": None, "statistics.bce": 0.0}),
    "Adam's eps 1e-5": Variant(eps=1e-5),
    "gradients clipped at norm 0.1": Variant({"training.clip": 0.1}),
    "SGD with momentum": Variant(sgd=True),
    "float64": Variant(dtype=torch.float64),
}


class Step:
    """A batch with its feature maps, which all variants share."""

    def __init__(self, detector: Detector, batch: Any) -> None:
        self.images, self.masks = batch.images, batch.anomaly_masks
        self.maps = [m.detach() for m in detector.features(batch.images)]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of MVTec AD")
    parser.add_argument("--category", default="toothbrush")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="result file")
    options = parser.parse_args(words)
    command = ("python", "-m", "benchmarks.chaos", *(sys.argv[1:] if words is None else words))
    torch.set_num_threads(1)
    began = time.monotonic()
    settings = {"backbone.name": "tf_efficientnet_lite0", "backbone.weights": "packaged"}
    settings |= {"image_size": options.image_size, "couplings.position_channels": 128}
    test = open_dataset(options.data, "test", options.image_size, category=options.category)
    tested = torch.stack([test[i].image for i in range(0, len(test), 5)])
    found: dict[str, Any] = {}
    steps: dict[bool, list[Step]] = {}
    for name in options.variants:
        variant = VARIANTS[name]
        make = partial(build, "sanflow", {**settings, **variant.settings})
        synthetic = variant.settings.get("synthesis", True) is not None
        if synthetic not in steps:
            steps[synthetic] = list(batches(make(), options, synthetic))
        found[name] = measure(make, variant, steps[synthetic], options.images // SIZE, tested)
        print(f"{name}: {found[name]['distance'][-1]:.1e} after {options.steps} steps", file=sys.stderr, flush=True)
        if options.json is not None:
            record = provenance(command) | {"seconds": round(time.monotonic() - began), "threads": 1, "seed": 0}
            write_json(options.json, {"record": record, "variants": found})
    print(table(found))
    return 0


def batches(detector: Detector, options: argparse.Namespace, synthetic: bool) -> Iterator[Step]:
    """Yield the batches of the first steps of `semflow.fit`."""
    dataset = open_dataset(options.data, "train", options.image_size, category=options.category)
    paste = detector.provenance.synthesis if synthetic else None
    source = SyntheticAnomalies(Subset(dataset, range(options.images)), paste, seed=0)
    per_epoch = options.images // SIZE
    for number in range(options.steps):
        source.set_epoch(number // per_epoch)
        first = number % per_epoch * SIZE
        yield Step(detector, collate([source[i] for i in range(first, first + SIZE)]))


def measure(
    make: Callable[[], Detector], variant: Variant, steps: Sequence[Step], per_epoch: int, tested: Tensor
) -> dict[str, Any]:
    """Train two detectors in turns; return their distance after each step, its growth, and the scores of both."""
    pair = [prepared(make(), variant, scale, steps) for scale in (1.0, 1.0 + variant.start)]
    training = cast(TrainingConfig, pair[0].provenance.training)
    optimizers = [optimizer(detector, variant) for detector in pair]
    distances, values = [distance(pair)], []
    with changed(variant):
        for number, step in enumerate(steps):
            maps = [m.to(variant.dtype) for m in step.maps]
            for detector, steps_of in zip(pair, optimizers, strict=True):
                for group in steps_of.param_groups:
                    rate = training.learning_rate_at(number / per_epoch / training.epochs)
                    group["lr"] = rate / 2 if variant.sgd else rate
                terms = train_on_batch(detector, steps_of, training, step.images.to(variant.dtype), step.masks, maps)
            distances.append(distance(pair))
            values.append(float(terms[0]))
    scores = [detector.eval().predict(tested.to(variant.dtype)).score for detector in pair]
    growth = [(b / a) ** (1 / WINDOW) for a, b in zip(distances, distances[WINDOW:], strict=False) if a]
    return {
        "distance": distances,
        "per_step": max(growth, default=0.0),
        "loss": values,
        "score": [float(scores[0].min()), float(scores[0].max())],
        "score_difference": float((scores[0] - scores[1]).abs().max()),
        "gradient_h": gradients_apart(pair, "head"),
        "gradient_flows": gradients_apart(pair, "flows"),
    }


def prepared(detector: Detector, variant: Variant, scale: float, steps: Sequence[Step]) -> Detector:
    detector.to(variant.dtype)
    if not variant.norms and detector.head is not None:
        for network in cast(Any, detector.head).networks:
            network.norms = nn.ModuleList(nn.Identity() for _ in network.norms)
    with torch.no_grad():
        for p in detector.trainable():
            p.mul_(scale)
    detector.prepare([step.images.to(variant.dtype) for step in steps[:3]])
    return detector.train()


def optimizer(detector: Detector, variant: Variant) -> torch.optim.Optimizer:
    if variant.sgd:
        return torch.optim.SGD(detector.trainable(), 1e-3, momentum=0.9)
    found = adam(detector, cast(TrainingConfig, detector.provenance.training))
    for group in found.param_groups:
        group["eps"] = variant.eps
    return found


@contextmanager
def changed(variant: Variant) -> Iterator[None]:
    """Replace the ReLU of modules during the block."""
    with ExitStack() as stack:
        for module in variant.smooth:
            stack.enter_context(patch.object(module, "F", SMOOTH))
        if subnets in variant.smooth:
            stack.enter_context(fused_kernels(False))
        yield


def distance(pair: Sequence[Detector]) -> float:
    """Return the relative distance of the trained weights."""
    a, b = (torch.cat([p.detach().double().flatten() for p in detector.trainable()]) for detector in pair)
    return float((a - b).norm() / a.norm())


def gradients_apart(pair: Sequence[Detector], part: str) -> float | None:
    """Return the relative distance of the gradients of one part, None if it has no parameters."""

    def gradient(detector: Detector) -> list[Tensor]:
        return [
            p.grad.double().flatten()
            for name, p in detector.named_parameters()
            if name.startswith(part) and p.grad is not None
        ]

    one, other = (gradient(detector) for detector in pair)
    if not one:
        return None
    a, b = torch.cat(one), torch.cat(other)
    return float((a - b).norm() / a.norm())


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the distances after some steps, as Markdown."""
    count = len(next(iter(found.values()))["distance"]) - 1
    at = [round(count * part / 4) for part in range(5)]
    header = ["", *(f"step {k}" for k in at), "per step", "gradient of h", "of the flows", "score"]
    rows = []
    for name, values in found.items():
        apart = (values["gradient_h"], values["gradient_flows"], values["score_difference"])
        numbers = [values["distance"][k] for k in at]
        rows.append([
            name,
            *(f"{x:.0e}" for x in numbers),
            f"{values['per_step']:.2g}",
            *("" if x is None or math.isnan(x) else f"{x:.0e}" for x in apart),
        ])  # fmt: skip
    return markdown_table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
