"""Compare the false-alarm rates of split and cross-conformal calibration over many resamplings.

    python -m benchmarks.crossing --data mvtec --json benchmarks/results/crossing.json

For each resampling, 48 good images are drawn to train and calibrate on, and others to test. `split` holds out a fifth,
as `semflow fit` does; `cross` trains and calibrates on all 48. The images are synthetic (maps of 8 channels, normal
with a common part in each image) or good images of MVTec AD (with --data; features of EfficientNet-Lite0 at 128 px,
stride 16). The score is the largest value of the map. The methods are

- `memory`: distances to all vectors of the training images, each left out in turn;
- `coreset`: to a tenth of them; for `cross`, also to those of five coresets of four fifths of the images;
- `gaussian`: Mahalanobis distances to a normal distribution at each location, each image left out in turn;
- `flow`: log-likelihoods of a small flow of eight channels' means over the locations, trained by gradient steps; for
  `cross`, five more models are trained on four fifths each.

`mean` is the rate over all test images of all resamplings, with its standard error, and `range` the interval that nine
of ten resamplings lie in. `exact` is floor(a (n + 1)) / (n + 1), which split calibration reaches on average.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .calibration import begun
from .shared.record import provenance, write_json

IMAGES, HELD, TESTS = 48, 9, 50
KINDS = {"split": HELD, "cross": IMAGES}
"""Number of calibration images."""
RATES = (0.021, 0.05, 0.1)
CHUNK, STEPS = 50, 40
METHODS = ("memory", "coreset", "gaussian", "flow")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.crossing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with screw and toothbrush of MVTec AD")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--resamplings", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(words)
    about = provenance(["python", "-m", "benchmarks.crossing", *(sys.argv[1:] if words is None else words)])
    about |= {"epochs": 0, "image_size": 128, "seed": options.seed, "resamplings": options.resamplings}
    found = begun(options.json, about)
    sources: dict[str, Callable[[Any], Any]] = {"synthetic": synthetic}
    for name in ("toothbrush", "screw") if options.data else ():
        sources[name] = real(options.data / name)
    for name, draw in sources.items():
        for method in options.methods:
            if method not in found.setdefault(name, {}):
                found[name][method] = measure(draw, method, options.resamplings, options.seed)
                print(json.dumps({name: {method: found[name][method]}}), flush=True)
                if options.json is not None:
                    write_json(options.json, {**about, "results": found})
    return 0


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the guide, in percent."""
    columns = [(kind, f"{rate:g}") for kind, count in KINDS.items() for rate in RATES[::-1] if rate >= 1 / (count + 1)]
    first = next(iter(next(iter(results.values())).values()))
    heads = [f"{kind}, {100 * float(rate):g} %" for kind, rate in columns]
    rows = [["data", "score", *heads], ["---"] * (2 + len(heads))]
    rows.append(["", "expected of a split", *(f"{100 * first[kind][rate]['exact']:.2f}" for kind, rate in columns)])
    for name, methods in results.items():
        for method, found in methods.items():
            each = [found[kind][rate] for kind, rate in columns]
            rows.append([name, method, *(f"{100 * x['mean']:.2f} ± {100 * x['error']:.2f}" for x in each)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def synthetic(generator: Any) -> tuple[Any, Any]:
    """Return maps of training and test images."""
    import torch

    shape = (IMAGES + TESTS, 8, 4, 4)
    maps = torch.randn(shape, generator=generator) + 0.7 * torch.randn(shape[0], 8, 1, 1, generator=generator)
    return maps[:IMAGES], maps[IMAGES:]


def real(path: Path) -> Callable[[Any], tuple[Any, Any]]:
    """Return a function that draws from the good images of a data set, whose maps are computed once."""
    import torch

    from semflow.data import open_dataset
    from semflow.recipes import Backbone, padim

    parts: list[Any] = [open_dataset(path, half, 128) for half in ("train", "test")]
    images = [sample.image for part in parts for sample in part if sample.label == 0]
    features = padim(Backbone("tf_efficientnet_lite0", "packaged", (32,)), 128, 50).features
    with torch.no_grad():
        maps = torch.cat([features(torch.stack(images[k : k + 32]))[0] for k in range(0, len(images), 32)])

    def draw(generator: Any) -> tuple[Any, Any]:
        order = torch.randperm(len(maps), generator=generator)
        return maps[order[:IMAGES]], maps[order[IMAGES : IMAGES + TESTS]]

    return draw


def measure(draw: Callable[[Any], Any], method: str, resamplings: int, seed: int) -> dict[str, Any]:
    """Return the rates of both kinds of calibration."""
    import torch

    from semflow.detectors import conformal_p_values, images_needed

    generator = torch.Generator().manual_seed(seed)
    alarms: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for first in range(0, resamplings, CHUNK):
        drawn = [draw(generator) for _ in range(min(CHUNK, resamplings - first))]
        for kind in KINDS:
            if method == "flow":
                found = flows(kind, drawn, first)
            else:
                found = [one_pass(method, kind, train, test, first + k) for k, (train, test) in enumerate(drawn)]
            alarms[kind] += [conformal_p_values(scores, new) for scores, new in found]
    rates: dict[str, Any] = {"tests": alarms["split"][0].numel()}
    for kind, count in KINDS.items():
        for rate in RATES:
            if images_needed(rate) <= count:
                each = (torch.stack(alarms[kind]) <= rate).double().mean(1)
                low, high = torch.quantile(each, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
                rates.setdefault(kind, {})[f"{rate:g}"] = {
                    "exact": round(math.floor(rate * (count + 1) + 1e-9) / (count + 1), 5),
                    "mean": round(float(each.mean()), 5),
                    "error": round(float(each.std()) / math.sqrt(resamplings), 5),
                    "range": [round(low, 4), round(high, 4)],
                }
    return rates


def one_pass(method: str, kind: str, train: Any, test: Any, seed: int) -> tuple[Any, Any]:
    """Return calibration scores, and scores of test images, by a base that is fitted in one pass."""
    import torch

    from semflow.bases import Memory, PositionGaussian
    from semflow.training.crossing import split_folds

    def fitted(images: Any) -> Any:
        size = 0.1 if method == "coreset" else None
        base: Any = PositionGaussian("distance") if method == "gaussian" else Memory("distance", size=size)
        accumulator = base.accumulator()
        accumulator.update(images)
        base.fit(accumulator)
        return base

    def highest(base: Any, images: Any, leave_out: Any = None) -> Any:
        return (-base.normality(images, leave_out=leave_out)).flatten(1).amax(1)

    base = fitted(train[HELD:] if kind == "split" else train)
    if kind == "split":
        return highest(base, train[:HELD]), highest(base, test)
    if base.whole:
        return highest(base, train, torch.arange(IMAGES)), highest(base, test)
    scores = torch.empty(IMAGES)
    for held in split_folds(IMAGES, seed):
        rest = [i for i in range(IMAGES) if i not in held]
        scores[held] = highest(fitted(train[rest]), train[held])
    return scores, highest(base, test)


def flows(kind: str, drawn: Sequence[tuple[Any, Any]], seed: int) -> list[tuple[Any, Any]]:
    """Return calibration scores, and scores of test images, by flows that are trained together."""
    import torch

    from semflow.training.crossing import split_folds

    train, test = (torch.stack([x.mean((2, 3))[:, :8] for x in part]) for part in zip(*drawn, strict=True))
    folds = [list(range(HELD))] if kind == "split" else [*split_folds(IMAGES, seed), []]
    own = torch.ones(len(folds), IMAGES)
    for row, held in zip(own, folds, strict=True):
        row[held] = 0
    scores = train_together(train, own, torch.cat([train, test], 1), seed)  # (resamplings, models, images)
    calibration = [scores[:, k, held] for k, held in enumerate(folds)]
    return list(zip(torch.cat(calibration, 1), scores[:, -1, IMAGES:], strict=True))


def train_together(train: Any, own: Any, images: Any, seed: int) -> Any:
    """Train a model for each row of weights (M, n) on vectors (R, n, C), and return scores (R, M, B) of (R, B, C)."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    from semflow.bases import StandardNormal
    from semflow.flows import AffineCoupling, FlowSequence, HardPermutation

    torch.manual_seed(seed)
    count, channels = train.shape[0] * len(own), train.shape[2]
    weights = own.repeat(len(train), 1)
    data, all_images = (x.repeat_interleave(len(own), 0) for x in (train, images))
    mean = (weights[..., None] * data).sum(1, keepdim=True) / weights.sum(1)[:, None, None]
    square = (weights[..., None] * (data - mean).square()).sum(1, keepdim=True) / weights.sum(1)[:, None, None]
    flow = FlowSequence([AffineCoupling(channels), HardPermutation(channels), AffineCoupling(channels)])
    states, buffers = stack_module_state([flow])
    states = {name: x.detach().repeat(count, *[1] * (x.dim() - 1)) for name, x in states.items()}
    buffers = {name: x.repeat(count, *[1] * (x.dim() - 1)) for name, x in buffers.items()}

    def score(state: Any, fixed: Any, x: Any) -> Any:
        z, log_det = functional_call(flow, (state, fixed), (x[:, :, None, None],))
        return -(StandardNormal().log_prob(z) + log_det).flatten() / channels

    def loss(state: Any, fixed: Any, x: Any, weight: Any) -> Any:
        return (weight * score(state, fixed, x)).sum() / weight.sum()

    gradients = vmap(grad(loss))
    optimizer = torch.optim.Adam(states.values(), 0.01)
    for _ in range(STEPS):
        found = gradients(states, buffers, (data - mean) / square.sqrt(), weights)
        for name, x in states.items():
            x.grad = found[name]
        optimizer.step()
    with torch.no_grad():
        scores = vmap(score)(states, buffers, (all_images - mean) / square.sqrt())
    return scores.view(len(train), len(own), -1)


if __name__ == "__main__":
    raise SystemExit(main())
