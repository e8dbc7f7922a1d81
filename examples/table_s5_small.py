"""Table S5 in small: does a predicted variance help FastFlow to say where a defect is?

    python examples/table_s5_small.py --data mvtec/toothbrush    # a minute on one core
    python examples/table_s5_small.py                            # the demo's brick

FastFlow as it is; with one learned variance a scale, the control: where that does as well, predicting is not what
helps; and with a predicted variance. All from the same seed, on a small backbone and small images. FastFlow's log-det
belongs to the whole image and is left out of its map, so the variance of the base is the only scale that the map has.

On toothbrush this gives AUPRO 0.513, 0.534 and 0.584. One seed and twelve epochs show what to look at and prove
nothing: three seeds, two categories and longer training are in `benchmarks/results/tableS5`, and the whole table is
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
    """Metrics of each row."""
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
