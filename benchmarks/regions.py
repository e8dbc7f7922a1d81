"""Compare the masks of regions that chance does not explain with calibrated masks, on FastFlow.

    python -m benchmarks.regions --data mvtec --categories toothbrush --seeds 0 1 --image-size 256
    python -m benchmarks.regions --data textures --categories brick grass gravel --seeds 0 1 --image-size 128

A quarter of the training images is held out; FastFlow is trained on the others for 160 steps of 8 images and calibrated
on the quarter at a false-alarm rate of 10 %. The `calibrated` mask is where the anomaly map exceeds its threshold, the
`regions` mask where `significant_regions` is positive, which needs no held-out image. For both,

- `seg_f1` is F1 of all test pixels, and `iou` the mean over the defective images;
- `false_alarms` and `found` are the shares of good and of defective test images whose mask is not empty;
- `equal_seg_f1` is F1 of the mask of the lowest threshold that at most a tenth of the good test images exceed. It uses
  their labels, and shows how much of a difference is due to the rates of false alarms.

Finished cells are kept in OUTPUT/cells.jsonl; the table of all kept cells is written to OUTPUT/regions.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semflow.errors import ConfigError

from .shared.datasets import Data
from .shared.figures import markdown_table, spread, text_of
from .shared.record import provenance, write
from .shared.store import CellStore, Key

METRICS = ("seg_f1", "iou", "false_alarms", "found", "equal_seg_f1")
ROW = "FastFlow"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.regions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="folder with a folder for each category, in the layout of MVTec AD")
    add("--categories", nargs="+", default=["toothbrush"])
    add("--seeds", nargs="+", type=int, default=[0, 1])
    add("--image-size", type=int, default=256)
    add("--steps", type=int, default=160)
    add("--output", type=Path, default=Path("runs/regions"))
    add("--report", action="store_true", help="measure nothing: write the table of the cells that are kept")
    options = parser.parse_args(words)
    if options.data is None and not options.report:
        parser.error("--data must be the folder of the data set, but got none")
    record = provenance(["python", "-m", "benchmarks.regions", *(sys.argv[1:] if words is None else words)])
    store = CellStore(options.output / "cells.jsonl")
    for category, seed in [(c, s) for s in options.seeds for c in options.categories if not options.report]:
        data = Data("mvtec", options.data, category)
        settings = {"image_size": options.image_size, "steps": options.steps, "data": data.fingerprint()}
        if store.find(Key(ROW, category, seed), settings) is None:
            metrics = measure(data, seed, options.image_size, options.steps)
            store.append(Key(ROW, category, seed), settings, {"metrics": metrics}, record)
            print(category, seed, metrics, flush=True)
    write(options.output / "regions.md", table(store))
    print(table(store))
    return 0


def measure(data: Data, seed: int, image_size: int, steps: int) -> dict[str, float]:
    """Train FastFlow, and return the figures of its masks."""
    import torch

    from semflow import evaluate, fit
    from semflow.detectors import significant_regions
    from semflow.recipes import Backbone, fastflow
    from semflow.training import TrainingConfig

    torch.set_num_threads(1)
    detector = fastflow(Backbone("tf_efficientnet_lite0", "packaged", (4, 8, 16)), image_size, seed=seed)
    training = TrainingConfig(steps=steps, batch_size=8, learning_rate=1e-3, weight_decay=1e-5, seed=seed)
    train, test = (data.open(split, image_size) for split in ("train", "test"))
    fit(detector, train, training, calibration=0.25, false_alarm_rate=0.1, device="cpu", progress=False)
    found = evaluate(detector, test)
    samples = [test[i] for i in range(len(test))]
    empty = torch.zeros(image_size, image_size, dtype=torch.bool)
    truths = torch.stack([empty if s.anomaly_mask is None else s.anomaly_mask > 0 for s in samples])
    maps: dict[str, list[Any]] = {"calibrated": [], "regions": []}
    with torch.no_grad():
        for sample in samples:
            image = sample.image[None]
            maps["calibrated"].append(detector.predict(image).anomaly_map[0])
            maps["regions"].append(significant_regions(detector.encode(image), (image_size, image_size))[0])
    threshold: Any = detector.calibration.thresholds
    limits = {"calibrated": threshold[1].item(), "regions": 0.0}
    figures = {"image_auroc": found["image_auroc"], "aupro": found["aupro"]}
    for name, limit in limits.items():
        stacked = torch.stack(maps[name])
        good = torch.tensor([s.label == 0 for s in samples])
        highest = stacked[good].amax((1, 2)).sort(descending=True).values
        equal = max(highest[len(highest) // 10].item(), 0.0 if name == "regions" else -torch.inf)
        figures |= {f"{name}_{k}": v for k, v in of_masks(stacked > limit, truths, good).items()}
        figures[f"{name}_equal_seg_f1"] = of_masks(stacked > equal, truths, good)["seg_f1"]
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def of_masks(masks: Any, truths: Any, good: Any) -> dict[str, float]:
    """Return the figures of masks (N, H, W) of images of which some are good, (N,)."""
    both, either = ((masks & truths).flatten(1).sum(1), (masks | truths).flatten(1).sum(1))
    marked = masks.flatten(1).any(1).double()
    return {
        "seg_f1": 2 * both.sum().item() / (masks.sum() + truths.sum()).item(),
        "iou": (both.double() / either.clamp(min=1))[~good].mean().item(),
        "false_alarms": marked[good].mean().item(),
        "found": marked[~good].mean().item(),
    }


def table(store: CellStore) -> str:
    """Return the table of the kept cells, in percent."""
    kept = list(store.latest().values())
    if not kept:
        raise ConfigError(f"{store.path} must have cells, but got none; measure some first")
    rows = []
    for category in dict.fromkeys(cell["category"] for cell in kept):
        mine = {cell["seed"]: cell["result"]["metrics"] for cell in kept if cell["category"] == category}
        for name in ("calibrated", "regions"):
            cells = [spread({seed: 100 * found[f"{name}_{m}"] for seed, found in mine.items()}) for m in METRICS]
            rows.append([category, name, str(len(mine)), *(text_of(cell, 1) for cell in cells)])
    names = ["SegF1", "IoU", "false alarms", "defects found", "SegF1 at equal false alarms"]
    return markdown_table(["data", "mask", "seeds", *names], rows) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
