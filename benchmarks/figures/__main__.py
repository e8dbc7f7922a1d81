"""Draw the paper's qualitative figures for a trained run.

    python -m benchmarks.figures --model runs/screw --data mvtec/screw --output runs/figures/screw
    python -m benchmarks.figures --model runs/screw --compare runs/screw-2a --data mvtec/screw --output DIR

Figures, as PNG and SVG: localization (Figure 2), variances, two_bases (Figure 4), comparison (S3, with --compare),
posterior_train and posterior_test (Figures S4 and S5), predicted_means and predicted_mean_histograms (Figure S6, for
models 3b and 3c) and latent_means. The command lists the figures that the model cannot have, such as those of an
anomalous mean. figures.json has the command, the images and the versions.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from semflow.errors import DataError

from ..shared.plots import require_matplotlib
from ..shared.record import provenance, write_json
from ..shared.study import run_command


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = ("python", "-m", "benchmarks.figures", *(sys.argv[1:] if words is None else words))
    parser = argparse.ArgumentParser(
        "python -m benchmarks.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="run directory of semflow fit")
    parser.add_argument("--compare", metavar="RUN", help="another run, such as one of model 2a, for Figure S3")
    parser.add_argument("--data", required=True, help="the category's folder")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--images", type=int, default=6, metavar="N", help="columns of a figure")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic anomalies")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(words)
    if options.images < 1:
        parser.error(f"--images must be at least 1, but got {options.images}")
    return run_command(lambda: run(options, command))


def run(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Draw the figures of a model and return the exit code."""
    require_matplotlib()
    from semflow.data import open_dataset
    from semflow.recipes import load
    from semflow.training.loading import check_device

    from . import panels, style
    from .compute import histograms, mean_histograms, views

    device = check_device(options.device)
    detector = load(options.model).to(device)
    made = detector.provenance
    test = open_dataset(options.data, "test", made.image_size)
    chosen = choose(test.labels, [Path(p).parent.name for p in test.paths], options.images)
    if not chosen:
        raise DataError(f"{options.data} must contain anomalous test images with labels, but got none")
    seen = views(detector, [test[k] for k in chosen])
    about = f"{Path(options.data).name}, {made.recipe or 'model'}"
    figures: dict[str, Any] = {
        "localization": panels.localization(seen, detector.map_range, f"Localization: {about}"),
    }
    missing = {}
    if seen[0].variances:
        figures["variances"] = panels.variances(seen, f"Predicted variance: {about}")
    else:
        missing["variances"] = "the model predicts no variance"
    if seen[0].posterior is not None:
        figures["two_bases"] = panels.two_bases(seen, f"Normal and anomalous base: {about}")
        figures["posterior_test"] = panels.posterior(seen, f"s(z) on test images: {about}")
        synthetic = views(detector, _synthetic(options, detector))
        figures["posterior_train"] = panels.posterior(synthetic, f"s(z) on synthetic anomalies: {about}")
    else:
        missing["two_bases, posterior_test, posterior_train"] = "the model has no anomalous mean"
    if seen[0].means:
        figures["predicted_means"] = panels.predicted_means(seen, f"Predicted means: {about}")
        figures["predicted_mean_histograms"] = panels.histogram_panels(
            mean_histograms(detector, test), "predicted mean", f"Predicted means on test images: {about}"
        )
    else:
        missing["predicted_means"] = "the model predicts no means (3b and 3c do)"
    found = histograms(detector, test)
    figures["latent_means"] = panels.histogram_panels(
        found, "mean of z over its channels", f"Latents at normal and anomalous locations: {about}"
    )
    if options.compare:
        other = load(options.compare).to(device)
        theirs = views(other, [open_dataset(options.data, "test", other.provenance.image_size)[k] for k in chosen])
        names = (Path(options.model).name, Path(options.compare).name)
        limits = (detector.map_range, other.map_range)
        figures["comparison"] = panels.comparison(seen, theirs, names, limits, f"Score maps of two models: {about}")
    else:
        missing["comparison"] = "needs --compare"
    for name, figure in figures.items():
        style.save(figure, options.output / name)
        print(f"wrote {options.output / name}.png and .svg")
    for name, why in missing.items():
        print(f"not drawn: {name}: {why}")
    record = {
        **provenance(command, options.device),
        "images": [view.name for view in seen],
        "overlap_of_latent_means": [histogram.overlap for histogram in found],
        "not_drawn": missing,
    }
    write_json(options.output / "figures.json", record)
    return 0


def choose(labels: Sequence[int], kinds: Sequence[str], count: int) -> list[int]:
    """Return indices of anomalous images, one of each kind of defect in turn."""
    groups: dict[str, list[int]] = {}
    for index, (label, kind) in enumerate(zip(labels, kinds, strict=True)):
        if label == 1:
            groups.setdefault(kind, []).append(index)
    turns = [index for turn in zip_longest(*groups.values()) for index in turn if index is not None]
    return turns[:count]


def _synthetic(options: argparse.Namespace, detector: Any) -> list[Any]:
    """Return training images with synthetic anomalies, of each kind in turn."""
    from semflow.data import open_dataset
    from semflow.synthesis import CutPaste, SyntheticAnomalies

    made = detector.provenance
    train = open_dataset(options.data, "train", made.image_size)
    source = SyntheticAnomalies(train, normal=False, seed=options.seed, cut_paste=made.synthesis or CutPaste())
    return [source[k] for k in range(min(options.images, len(source)))]


if __name__ == "__main__":
    sys.exit(main())
