"""Measure how much of unseen good images and of defects has color in heat maps.

    python -m benchmarks.colors --data mvtec --json colors.json

The data are toothbrush and screw of MVTec AD (with --data) and the demo's three textures, the detectors small:
PatchCore with 1 % of the features for MVTec AD, and the demo's `memory_flow` for the textures. Each is trained without
the calibration images: a fifth of MVTec's training images, and those that the demo sets apart. The figures, for the
color range from `training` images and from `calibration` images, are

- `good_pixels`: share of the pixels of good test images with color, on average over the images, and `most_of_one`, the
  largest share of one image;
- `defect_pixels`: share of the pixels of defects with color, and `defects`, the share of defective images that have
  color on the defect;
- `level`: mean level of the color on defects, from 0 for none to 1 for the last, and `brightest`, that of each defect's
  brightest pixel, on average over the defective images.

The file is written after each data set. A repeated command continues with those that it lacks.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .calibration import CATEGORIES, TEXTURES, begun, places
from .shared.record import provenance, write_json


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.colors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with screw and toothbrush of MVTec AD")
    parser.add_argument("--only", nargs="+", choices=(*CATEGORIES, *TEXTURES), help="only these data sets")
    parser.add_argument("--epochs", type=int, default=3, help="of training on the textures")
    parser.add_argument("--image-size", type=int, default=256, help="side of MVTec's images in pixels")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(words)
    about = provenance(["python", "-m", "benchmarks.colors", *(sys.argv[1:] if words is None else words)])
    about |= {"epochs": options.epochs, "image_size": options.image_size}
    found = begun(options.json, about)
    with tempfile.TemporaryDirectory() as folder:
        for name, path in places(options, Path(folder)):
            if name in found:
                continue
            found[name] = measure(path, name in TEXTURES, options.epochs, options.image_size)
            print(json.dumps({name: found[name]}, indent=1), flush=True)
            if options.json is not None:
                write_json(options.json, {**about, "results": found})
    return 0


def measure(path: Path, texture: bool, epochs: int, image_size: int) -> dict[str, Any]:
    """Train and calibrate on a data set, and return the figures."""
    from semflow import calibrate, fit
    from semflow.data import open_dataset
    from semflow.recipes import Backbone, memory_flow, patchcore
    from semflow.training import automatic_count, hold_out

    strides = (4, 8, 16) if texture else (8, 16)
    backbone = Backbone("tf_efficientnet_lite0", "packaged", strides)
    detector = memory_flow(backbone, 160, memory=1000) if texture else patchcore(backbone, image_size, coreset=0.01)
    size = detector.provenance.image_size
    train: Any = open_dataset(path / "train" / "good", "train", size, cache=True)
    held: Any
    if texture:
        held = open_dataset(path / "calibration", "train", size, cache=True)
    else:
        train, held = hold_out(train, automatic_count(len(train)))
    test = open_dataset(path, "test", size, cache=True)
    fit(detector, train, epochs=epochs if texture else None, batch_size=4, progress=False)
    ranges = {"training": detector.map_range}
    ranges["calibration"] = calibrate(detector, held).map_range
    figures = {"training_images": len(train), "calibration_images": len(held), "recipe": detector.provenance.recipe}
    return figures | shares(detector, test, ranges)


def shares(detector: Any, test: Any, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return the shares of colored pixels of test images for color ranges."""
    import torch

    from semflow.training import results

    good, defects, seen = [], [], list(results(detector, test))
    for result in seen:
        mask = result.sample.anomaly_mask
        if result.sample.label == 0:
            good.append(result.anomaly_map)
        elif mask is not None and mask.any():
            defects.append(result.anomaly_map[mask.bool()])
    found: dict[str, Any] = {"good_test_images": len(good), "defective_images": len(defects)}
    for name, (low, high) in ranges.items():
        colored = (torch.stack(good) > low).double().flatten(1).mean(1)
        levels = [((pixels - low) / (high - low)).clamp(0, 1).double() for pixels in defects]
        brightest = torch.stack([level.max() for level in levels])
        figures = {
            "good_pixels": colored.mean(), "most_of_one": colored.max(),
            "defect_pixels": (torch.cat(levels) > 0).double().mean(), "defects": (brightest > 0).double().mean(),
            "level": torch.cat(levels).mean(), "brightest": brightest.mean(),
        }  # fmt: skip
        found[name] = {key: float(f"{value.item():.4g}") for key, value in figures.items()}
    return found


def table(results: Mapping[str, Any]) -> str:
    """Return the table of results/trust.md, in percent."""
    header = ("data", "calibration images", "good pixels", "pixels of defects", "defects", "level")
    rows = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for name, found in results.items():
        figures = found["calibration"]
        shown = (figures[key] for key in ("good_pixels", "defect_pixels", "defects", "brightest"))
        rows.append(f"| {name} | {found['calibration_images']} | " + " | ".join(f"{100 * x:.3g}" for x in shown) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
