"""Train on a folder of good images and find anomalies in others.

    python examples/own_folder.py --data photos --output results

`photos` contains good images in good/ or train/good/. Images in test/ are scored. Without --data the example uses the
demo's brick images.
"""

import argparse
from pathlib import Path

from textures import data_folder

import semflow
from semflow.app.report import overlay, save_map
from semflow.app.report.plots import save_figure, training_curves
from semflow.data import open_dataset
from semflow.recipes import Backbone, memory_flow


def main(data: Path | None, output: Path, epochs: int) -> list[float]:
    """Return the scores of the test images."""
    output.mkdir(parents=True, exist_ok=True)
    root = data_folder(data, output / "brick")
    backbone = Backbone("tf_efficientnet_lite0", "packaged", (4, 8, 16))
    detector = memory_flow(backbone, image_size=160, memory=1000)
    train = open_dataset(root, "train", detector.provenance.image_size, cache=True)
    semflow.fit(detector, train, epochs=epochs, output=output / "run", progress=False)
    save_figure(training_curves(output / "run"), output / "training")

    detector = semflow.load(output / "run")  # in another program, start here
    test = open_dataset(root, "test", detector.provenance.image_size)
    scores = []
    for i in range(0, len(test), 8):
        sample = test[i]
        prediction = detector.predict(sample.image[None])
        name = f"{Path(sample.path).parent.name}_{Path(sample.path).stem}"
        overlay(sample.image, prediction.anomaly_map[0], detector.map_range).save(output / f"{name}.png")
        save_map(output / f"{name}.npy", prediction.anomaly_map[0])
        scores.append(float(prediction.score))
        print(f"{name:<16} {scores[-1]:8.3f}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/own_folder"))
    parser.add_argument("--epochs", type=int, default=4)
    main(**vars(parser.parse_args()))
