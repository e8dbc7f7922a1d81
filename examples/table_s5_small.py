"""A small version of Table S5: does a predicted variance help FastFlow to localize defects?

    python examples/table_s5_small.py --data mvtec/toothbrush    # a minute on one core
    python examples/table_s5_small.py                            # the demo's brick

Compares plain FastFlow, FastFlow with one learned variance per scale (the control: if it does as well, prediction is
not what helps), and FastFlow with a predicted variance. All use the same seed, a small backbone and small images.
FastFlow's log-det is a value per image and not part of its map, so the variance of the base sets the map's scale.

On toothbrush this gives AUPRO 0.513, 0.534 and 0.584. One seed and twelve epochs prove nothing: three seeds, two
categories and longer training are in `benchmarks/results/tableS5`. The whole table is computed by
`python -m benchmarks.reproduce tableS5 --data mvtec`.
"""

import argparse
from pathlib import Path

from textures import data_folder

import semflow
from semflow.data import open_dataset
from semflow.recipes import Backbone, build

SIZE = 128
ROWS = {
    "FastFlow": {},
    "one learned variance": {"statistics.variance": "learned"},
    "FastFlow+SP": {"statistics": True},
}


def main(data: Path | None, output: Path, epochs: int) -> dict[str, dict[str, float | None]]:
    """Return the metrics of each row."""
    output.mkdir(parents=True, exist_ok=True)
    root = data_folder(data, output / "brick")
    train, test = (open_dataset(root, split, SIZE, cache=True) for split in ("train", "test"))
    backbone = Backbone("tf_efficientnet_lite0", "packaged", (4, 8, 16))
    found: dict[str, dict[str, float | None]] = {}
    for name, settings in ROWS.items():
        detector = build("fastflow", {"backbone": backbone, "image_size": SIZE, **settings})
        semflow.fit(detector, train, epochs=epochs, batch_size=4, seed=0, progress=False)
        found[name] = metrics = semflow.evaluate(detector, test)
        first = found["FastFlow"]
        figures = [f"{metric} {metrics[metric]:.3f} ({metrics[metric] - first[metric]:+.3f})"
                   for metric in ("image_auroc", "pixel_auroc", "aupro") if metrics[metric] is not None]  # fmt: skip
        print(f"{name:<22}{', '.join(figures)}", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/table_s5_small"))
    parser.add_argument("--epochs", type=int, default=12)
    main(**vars(parser.parse_args()))
