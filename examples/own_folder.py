"""Train on a folder of good images and find anomalies in others.

    python examples/own_folder.py --data photos --output results

`photos` contains good images in train/good/. Every image in test/ is scored: test/good/ and test/DEFECT/, or test/
itself. Each one gets an anomaly map and an overlay in results/maps/. Without --data the example uses the demo's brick
images.
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
    for sample in (test[i] for i in range(len(test))):
        prediction = detector.predict(sample.image[None])
        anomaly_map = prediction.anomaly_map[0].cpu()
        name = Path(sample.path).relative_to(root / "test").as_posix()
        place = output / "maps" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        overlay(sample.image, anomaly_map, detector.map_range).save(f"{place}.png")
        save_map(Path(f"{place}.npy"), anomaly_map)
        scores.append(prediction.score.item())
        print(f"{name:<20} {scores[-1]:8.3f}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/own_folder"))
    parser.add_argument("--epochs", type=int, default=4)
    main(**vars(parser.parse_args()))
