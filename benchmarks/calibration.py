"""False alarms on real images: a detector calibrated on images that it was not trained on, and on some that it was.

    python -m benchmarks.calibration --data mvtec --json calibration.json

Trains a small detector on each of MVTec AD's screw and toothbrush (where --data holds them) and on the demo's three
textures, with a fifth of the training images held out. For false-alarm rates of 10, 5 and 1 %, as far as the images
allow them, it says

- `held_out`: how many of the good test images are called anomalous, how many of them have a mask, and of the defects
  how many are found; `expected` is where the number of false alarms lies in 95 of 100 calibrations if the test images
  are as those of training (beta-binomial);
- `trained_on`: the same with as many images that the detector was trained on. That is the mistake;
- `resampled`: good test images dealt anew into one to judge and the rest to calibrate on, which makes them
  exchangeable whatever they are: the rate must be floor(rate n) / n, n being their number;
- `same_score`: the largest relative difference between an image's score alone and in a batch of eight.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from semflow.errors import ConfigError

from .record import provenance

CATEGORIES, TEXTURES = ("screw", "toothbrush"), ("brick", "grass", "gravel")
RATES, DEALS = (0.1, 0.05, 0.01), 20_000


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(prog="benchmarks.calibration", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder that holds screw and toothbrush of MVTec AD")
    parser.add_argument("--only", nargs="+", choices=(*CATEGORIES, *TEXTURES), help="some of the data sets")
    parser.add_argument("--epochs", type=int, default=10, help="of training")
    parser.add_argument("--image-size", type=int, default=128, help="side of MVTec's images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(words)
    given = list(sys.argv[1:] if words is None else words)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in places(options, Path(folder)):
            found[name] = measure(path, options.epochs, 128 if name in TEXTURES else options.image_size, options.seed)
            print(json.dumps({name: found[name]}, indent=1), flush=True)
    if options.json is not None:
        about = provenance(["python", "-m", "benchmarks.calibration", *given])
        options.json.write_text(json.dumps({**about, "seed": options.seed, "results": found}, indent=1) + "\n")
    return 0


def places(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """The data sets asked for; the textures are made in `folder`."""
    from semflow.cli.demo_data import write_texture

    for name in options.only or (*(CATEGORIES if options.data else ()), *TEXTURES):
        if name in TEXTURES:
            write_texture(name, folder / name, options.seed)
            yield name, folder / name
        elif options.data is None:
            raise ConfigError(f"{name} needs --data, the folder that holds it")
        else:
            yield name, options.data / name


def measure(path: Path, epochs: int, image_size: int, seed: int) -> dict[str, Any]:
    """Train on a data set with a fifth held out, and count."""
    import torch

    from semflow.data import open_dataset
    from semflow.detectors import automatic_count, fit, hold_out, results, summarize
    from semflow.recipes import sanflow

    train, test = (open_dataset(path, half, image_size, cache=True) for half in ("train", "test"))
    held = automatic_count(len(train))
    detector = sanflow(
        "tf_efficientnet_lite0", "packaged", (4, 8, 16), image_size=image_size, position_channels=128, seed=seed
    )
    fit(detector, train, epochs=epochs, batch_size=4, seed=seed, calibration=held, progress=False)
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
        "image_auroc": round(summarize(judged).image_auroc, 4),
        **{name: decide(kept, scores, maxima, labels) for name, kept in calibrations.items()},
        "resampled": {"image": deal(scores[labels == 0], seed), "mask": deal(maxima[labels == 0], seed)},
        "same_score": float(((alone - scores).abs() / scores.abs()).max()),
    }


def decide(kept: Any, scores: Any, maxima: Any, labels: Any) -> dict[str, Any]:
    """Counts at each rate that a calibration (2, n) of scores and maxima allows."""
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
    """The rate over many deals of all but one to calibrate on, beside the exact one."""
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
