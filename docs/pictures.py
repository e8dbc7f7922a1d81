"""The pictures of docs/pictures.md and README.md, from a demo folder: `python docs/pictures.py DEMO LONGER`.

Everything comes from the demo's folders: photographs of scikit-image, its defects, its models. Results are those of
`memory_flow` in the first; the predicted variance, the latents and the training curves are those of `sanflow` in the
second, from a demo with more epochs.
"""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import semflow
from semflow.app.report import Panel, contour, gallery, overlay, to_picture
from semflow.app.report.plots import (
    base_by_scale,
    pro_curve,
    roc_curve,
    save_figure,
    score_histogram,
    training_curves,
    variance_maps,
)
from semflow.data import Sample, open_dataset
from semflow.detectors import Detector, Prediction
from semflow.files import write_atomic
from semflow.synthesis import SyntheticAnomalies

OUT = Path(__file__).resolve().parent / "images" / "demo"
SHOWN = ("good/000.png", "crack/000.png", "scratch/000.png", "stain/000.png")
TEXTURE = "brick"


def main(demo: Path, longer: Path) -> None:
    """Write every picture."""
    results(demo)
    statistics(longer)
    save_small(synthetic(demo), "synthesis")


def tested(demo: Path, recipe: str) -> tuple[Detector, list[Sample], list[str], Prediction, torch.Tensor]:
    """Return the detector of a recipe, the test images with their names, its prediction, and the masks."""
    detector = semflow.load(demo / "models" / recipe / TEXTURE)
    test = open_dataset(demo / "data" / TEXTURE, "test", detector.provenance.image_size)
    samples = [test[i] for i in range(len(test))]
    names = ["/".join(Path(sample.path).parts[-2:]) for sample in samples]
    prediction = detector.predict(torch.stack([sample.image for sample in samples]))
    return detector, samples, names, prediction, torch.stack([sample.anomaly_mask for sample in samples])


def results(demo: Path) -> None:
    """Write heat maps, scores and curves."""
    detector, samples, names, prediction, masks = tested(demo, "memory_flow")
    labels = [sample.label for sample in samples]
    panels = []
    for name in SHOWN:
        i = names.index(name)
        heat = overlay(samples[i].image, prediction.anomaly_map[i], detector.map_range)
        heat = contour(heat, np.asarray(prediction.mask[i]))
        truth, caption = np.asarray(masks[i]), f"{TEXTURE}, {Path(name).parent}"
        panels.append(Panel(to_picture(samples[i].image), heat, truth, caption, float(prediction.score[i])))
    save_small(gallery(panels, columns=2, title="image, ground truth, heat map"), "heat")
    save_png(score_histogram(prediction.score, labels), "scores")
    save_png(roc_curve(prediction.score, labels, title=f"{TEXTURE}: images"), "roc")
    save_png(pro_curve(prediction.anomaly_map, masks, title=f"{TEXTURE}: pixels"), "pro")


def statistics(demo: Path) -> None:
    """Write the predicted variance, the latents and the training curves of SANFlow."""
    detector, samples, names, prediction, masks = tested(demo, "sanflow")
    shown = names.index(SHOWN[1])
    save_png(
        variance_maps(samples[shown].image, [v[shown] for v in prediction.variance], detector.features.strides),
        "variance",
    )
    with torch.inference_mode():
        latents = detector.encode(torch.stack([sample.image for sample in samples]))
    save_png(base_by_scale(latents, masks), "base")
    save_png(training_curves(demo / "models/sanflow" / TEXTURE), "training")


def synthetic(demo: Path) -> Image.Image:
    """Return training crops, unchanged and with pasted patches, above their masks."""
    train = open_dataset(demo / "data" / TEXTURE, "train", 128)
    made = SyntheticAnomalies(train, seed=0)
    tiles = []
    for i in range(4):
        sample = made[i]
        mask = np.repeat(np.asarray(sample.anomaly_mask, dtype=np.uint8)[..., None] * 255, 3, axis=2)
        tiles.append(np.vstack((np.asarray(to_picture(sample.image)), np.full((6, 128, 3), 255, np.uint8), mask)))
    gap = np.full((tiles[0].shape[0], 6, 3), 255, np.uint8)
    return Image.fromarray(np.hstack([part for tile in tiles for part in (tile, gap)][:-1]))


def save_small(picture: Image.Image, name: str) -> None:
    """Save a picture as a PNG of 256 colors, which is small enough for a repository."""
    buffer = io.BytesIO()
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(
        buffer, format="PNG", optimize=True
    )
    OUT.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT / f"{name}.png", buffer.getvalue())


def save_png(figure: object, name: str) -> None:
    """Save a figure as a small PNG only."""
    OUT.mkdir(parents=True, exist_ok=True)
    png, svg = save_figure(figure, OUT / name)
    svg.unlink()
    with Image.open(png) as picture:
        save_small(picture.convert("RGB"), name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
