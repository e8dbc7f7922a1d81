"""Count false alarms on real images, with calibration images that the detector was or was not trained on.

    python -m benchmarks.calibration --data mvtec --seeds 0 1 2 --whole screw toothbrush --json calibration.json

For each seed, a small detector is trained on screw and toothbrush of MVTec AD (with --data) and on the demo's three
textures, with a fifth of the training images held out. The figures, for false-alarm rates of 10, 5 and 1 % if there are
enough images, are

- `held_out`: number of good test images with an alarm and with a mask, and the fraction of defects that are found;
  `expected` is the 95 % interval of the number of alarms if test and training images have the same distribution
  (beta-binomial);
- `trained_on`: the same when calibrated on images of the training, which is a mistake;
- `resampled`: the rate when each good test image is judged by the others, so that all are exchangeable; it must be
  floor(rate n) / n for n images;
- `same_score`: the largest difference between an image's score alone and in a batch of eight, relative to the score, or
  to 1 if the score is smaller;
- `metrics` of the test images; with --whole also `whole`, those of a detector trained on all training images.

The file is written after each training. A repeated command continues with the data sets and seeds that it lacks.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from semflow.errors import ConfigError

from .shared.record import provenance, write_json

CATEGORIES, TEXTURES = ("screw", "toothbrush"), ("brick", "grass", "gravel")
RATES, DEALS = (0.1, 0.05, 0.01), 20_000


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.calibration", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with screw and toothbrush of MVTec AD")
    parser.add_argument("--only", nargs="+", choices=(*CATEGORIES, *TEXTURES), help="only these data sets")
    parser.add_argument("--epochs", type=int, default=10, help="of training")
    parser.add_argument("--image-size", type=int, default=128, help="side of MVTec's images in pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--whole", nargs="*", default=[], choices=(*CATEGORIES, *TEXTURES), help="data sets to train on all images too"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(words)
    given = list(sys.argv[1:] if words is None else words)
    about = provenance(["python", "-m", "benchmarks.calibration", *given])
    about |= {"seeds": options.seeds, "epochs": options.epochs, "image_size": options.image_size}
    found = begun(options.json, about)
    with tempfile.TemporaryDirectory() as folder:
        data = dict(places(options, Path(folder)))
        for whole, seed, name in product((False, True), options.seeds, data):
            kept = found.setdefault(name, {}).setdefault(str(seed), {})
            if ("whole" if whole else "metrics") in kept or (whole and name not in options.whole):
                continue
            size = 128 if name in TEXTURES else options.image_size
            what = compare if whole else measure
            kept["whole_commit" if whole else "commit"] = about["commit"]
            kept |= what(data[name], options.epochs, size, seed)
            print(json.dumps({name: {seed: kept}}, indent=1), flush=True)
            if options.json is not None:
                write_json(options.json, {**about, "results": found})
    return 0


def begun(file: Path | None, about: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a file that was written with the same options, versions and machine, or none."""
    if file is None or not file.is_file():
        return {}
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if any(before.get(name) != about[name] for name in ("epochs", "image_size", "versions", "machine")):
        return {}
    results: dict[str, Any] = before["results"]
    return results


def places(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names and paths of the chosen data sets; the textures are written to `folder`."""
    from semflow.app.cli.demo_data import write_texture

    for name in options.only or (*(CATEGORIES if options.data else ()), *TEXTURES):
        if name in TEXTURES:
            write_texture(name, folder / name, 0)
            yield name, folder / name
        elif options.data is None:
            raise ConfigError(f"--data must be the folder that contains {name}, but got none")
        else:
            yield name, options.data / name


def compare(path: Path, epochs: int, image_size: int, seed: int) -> dict[str, Any]:
    """Train on all training images of a data set, and return the metrics."""
    from semflow.data import open_dataset
    from semflow.training import results, summarize

    train, test = (open_dataset(path, half, image_size, cache=True) for half in ("train", "test"))
    return {"whole": rounded(summarize(results(trained(train, epochs, image_size, seed, 0), test)))}


def measure(path: Path, epochs: int, image_size: int, seed: int) -> dict[str, Any]:
    """Train on a data set with a fifth held out, and return the figures."""
    import torch

    from semflow.data import open_dataset
    from semflow.training import automatic_count, hold_out, results, summarize

    train, test = (open_dataset(path, half, image_size, cache=True) for half in ("train", "test"))
    held = automatic_count(len(train))
    detector = trained(train, epochs, image_size, seed, held)
    seen = [(r.score, float(r.anomaly_map.max())) for r in results(detector, hold_out(train, held, seed)[0])]
    judged = list(results(detector, test))
    calibrations = {
        "held_out": torch.stack([detector.calibration.scores, detector.calibration.maxima]),
        "trained_on": torch.tensor(seen).T[:, torch.randperm(len(seen), generator=_generator(seed))[:held]],
    }
    scores, maxima = (
        torch.tensor(x) for x in zip(*((r.score, float(r.anomaly_map.max())) for r in judged), strict=True)
    )
    labels = torch.tensor([r.sample.label for r in judged])
    alone = torch.cat([detector.predict(r.sample.image[None]).score for r in judged])
    return {
        "train_images": len(train) - held,
        "calibration_images": held,
        "good_test_images": int((labels == 0).sum()),
        "defects": int((labels == 1).sum()),
        "metrics": rounded(summarize(judged)),
        **{name: decide(kept, scores, maxima, labels) for name, kept in calibrations.items()},
        "resampled": {"image": deal(scores[labels == 0], seed), "mask": deal(maxima[labels == 0], seed)},
        "same_score": float(((alone - scores).abs() / scores.abs().clamp_min(1)).max()),
    }


def trained(train: Any, epochs: int, image_size: int, seed: int, held: int) -> Any:
    """Train a small detector, calibrated on held-out images unless `held` is 0."""
    from semflow.recipes import build
    from semflow.training import fit

    settings = {
        "backbone.name": "tf_efficientnet_lite0",
        "backbone.weights": "packaged",
        "backbone.strides": (4, 8, 16),
        "image_size": image_size,
        "couplings.position_channels": 128,
        "seed": seed,
    }
    detector = build("sanflow", settings)
    setup = {"epochs": epochs, "seed": seed, "calibration": held or None}
    return fit(detector, train, **setup, batch_size=4, device="cpu", progress=False)


def rounded(summary: Any) -> dict[str, float | None]:
    """Return the metrics by name."""
    values = {name: getattr(summary, name) for name in ("image_auroc", "pixel_auroc", "aupro")}
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def decide(kept: Any, scores: Any, maxima: Any, labels: Any) -> dict[str, Any]:
    """Return the counts at each rate that a calibration (2, n) of scores and maxima allows."""
    from scipy.stats import betabinom

    from semflow.detectors import conformal_threshold, images_needed

    count, found = kept.shape[1], {}
    for rate in RATES:
        if images_needed(rate) > count:
            continue
        alarms = scores > conformal_threshold(kept[0], rate)
        masked = maxima > conformal_threshold(kept[1], rate)
        good = int((labels == 0).sum())
        first = math.floor(rate * (count + 1) + 1e-9)
        low, high = betabinom.ppf((0.025, 0.975), good, first, count + 1 - first)
        found[f"{rate:g}"] = {
            "false_alarms": int(alarms[labels == 0].sum()),
            "false_masks": int(masked[labels == 0].sum()),
            "expected": [int(low), int(high)],
            "of": good,
            "detection_rate": round(float(alarms[labels == 1].double().mean()), 4),
        }
    return found


def deal(values: Any, seed: int) -> dict[str, Any]:
    """Return the rate over many random choices of one value and calibration on the others, and the exact rate."""
    import torch

    from semflow.detectors import conformal_p_values, images_needed

    count = len(values)
    found = {}
    dealt = values[torch.rand(DEALS, count, generator=_generator(seed)).argsort(1)]
    p_values = conformal_p_values(dealt[:, :-1], dealt[:, -1:])[:, 0]
    for rate in RATES:
        if images_needed(rate) < count:
            exact = math.floor(rate * count + 1e-9) / count
            found[f"{rate:g}"] = {"rate": float((p_values <= rate).double().mean()), "exact": round(exact, 5)}
    return found


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    raise SystemExit(main())
