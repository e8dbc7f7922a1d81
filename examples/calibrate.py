"""Turn scores into decisions: hold good images out, choose a false-alarm rate, see what is found.

    python examples/calibrate.py --data photos --output results

Without --data the demo's brick is taken, which has labelled defects to count. Its test crops are of another part of the
photograph than the good ones: the promise is for images of the same kind as those that were held out, and here more
good crops are called defects than were asked for. With images of your own, hold out some of each day and camera.
"""

import argparse
from pathlib import Path

import torch
from textures import data_folder

import semflow
from semflow.app.report.plots import save_figure, score_histogram
from semflow.data import open_dataset
from semflow.recipes import Backbone, Couplings, sanflow


def main(data: Path | None, output: Path, epochs: int) -> tuple[float, float]:
    """The false-alarm rate that is asked for, and the share of the test's defects that is found at it."""
    output.mkdir(parents=True, exist_ok=True)
    root = data_folder(data, output / "brick")
    backbone = Backbone("tf_efficientnet_lite0", "packaged", (8, 16, 32), smoothing=3)
    detector = sanflow(backbone, image_size=128, couplings=Couplings(4, 64, "hard", standardize=True))
    train = open_dataset(root, "train", detector.provenance.image_size, cache=True)
    # 19 of the good images are not trained on; 19 are what a rate of 5 % needs.
    semflow.fit(detector, train, epochs=epochs, batch_size=8, calibration=19, false_alarm_rate=0.05, progress=False)

    test = open_dataset(root, "test", detector.provenance.image_size)
    samples = [test[i] for i in range(len(test))]
    prediction = detector.predict(torch.stack([sample.image for sample in samples]))
    labels = torch.tensor([sample.label for sample in samples])
    found = prediction.is_anomalous[labels == 1].float().mean().item()
    alarms = prediction.is_anomalous[labels == 0].float().mean().item()
    print(f"asked for: at most {detector.false_alarm_rate:.0%} false alarms")
    print(f"on the test images: {found:.0%} of {int((labels == 1).sum())} defects found, "
          f"{alarms:.0%} of {int((labels == 0).sum())} good images called defects")  # fmt: skip
    # An image is anomalous above the highest of its 19 calibration scores: ceil(20 x 0.95) is 19.
    threshold = detector.calibration.scores.max().item()
    save_figure(score_histogram(prediction.score, labels, threshold=threshold), output / "scores")
    return detector.false_alarm_rate, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/calibrate"))
    parser.add_argument("--epochs", type=int, default=4)
    main(**vars(parser.parse_args()))
