"""Table S5 in small: FastFlow as it is, with one learned variance a scale, and with a predicted variance.

    python examples/table_s5_small.py

On the demo's brick and a small backbone, so that it takes a minute; the table itself, on MVTec AD and with all its rows
and controls, is `python -m benchmarks.reproduce tableS5 --data mvtec`.
"""

import argparse
from pathlib import Path

from textures import data_folder

import semflow
from semflow.data import open_dataset
from semflow.recipes import fastflow

ROWS = {
    "FastFlow": {},
    "one learned variance": {"statistics": True, "variance": "learned"},
    "FastFlow+SP": {"statistics": True},
}


def main(data: Path | None, output: Path, epochs: int) -> dict[str, dict[str, float | None]]:
    """Metrics of each row."""
    output.mkdir(parents=True, exist_ok=True)
    root = data_folder(data, output / "brick")
    train, test = open_dataset(root, "train", 128, cache=True), open_dataset(root, "test", 128)
    found = {}
    for name, arguments in ROWS.items():
        detector = fastflow("tf_efficientnet_lite0", "packaged", (4, 8, 16), image_size=128, **arguments)
        semflow.fit(detector, train, epochs=epochs, batch_size=8, seed=0, progress=False)
        found[name] = semflow.evaluate(detector, test)
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in found[name].items() if value is not None)
        print(f"{name:<22}{figures}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/table_s5_small"))
    parser.add_argument("--epochs", type=int, default=3)
    main(**vars(parser.parse_args()))
