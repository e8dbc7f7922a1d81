"""Turn scores into decisions: hold out good images, choose a false-alarm rate, and count detected defects.

    python examples/calibrate.py --data photos --output results

Without --data the example uses the demo's brick images, which have labeled defects. Their test crops come from another
part of the photograph than the held-out images, so more good crops are called defects than the rate allows: the rate
holds for images of the same kind as the held-out ones. With your own images, hold out some of each day and camera.
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
    """Return the false-alarm rate and the share of test defects that is detected."""
    output.mkdir(parents=True, exist_ok=True)
    root = data_folder(data, output / "brick")
    backbone = Backbone("tf_efficientnet_lite0", "packaged", (8, 16, 32), smoothing=3)
    detector = sanflow(backbone, image_size=128, couplings=Couplings(4, 64, "hard", standardize=True))
    train = open_dataset(root, "train", detector.provenance.image_size, cache=True)
    # A rate of 5 % needs 19 good images that are not used for training.
    semflow.fit(detector, train, epochs=epochs, batch_size=8, calibration=19, false_alarm_rate=0.05, progress=False)

    test = open_dataset(root, "test", detector.provenance.image_size)
    samples = [test[i] for i in range(len(test))]
    prediction = detector.predict(torch.stack([sample.image for sample in samples]))
    scores, is_anomalous = prediction.score.cpu(), prediction.is_anomalous.cpu()
    labels = torch.tensor([sample.label for sample in samples])
    found = is_anomalous[labels == 1].float().mean().item()
    alarms = is_anomalous[labels == 0].float().mean().item()
    print(f"false-alarm rate: at most {detector.false_alarm_rate:.0%}")
    print(f"test images: {found:.0%} of {int((labels == 1).sum())} defects detected, "
          f"{alarms:.0%} of {int((labels == 0).sum())} good images called defects")  # fmt: skip
    # The threshold is calibration score number ceil(20 x 0.95) = 19, the highest.
    threshold = detector.calibration.scores.max().item()
    save_figure(score_histogram(scores, labels, threshold=threshold), output / "scores")
    return detector.false_alarm_rate, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/calibrate"))
    parser.add_argument("--epochs", type=int, default=4)
    main(**vars(parser.parse_args()))
