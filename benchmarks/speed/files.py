"""Speed from PNG files on disk to scores, and of each part.

The files are generated in a temporary folder: 1024 x 1024 pixels of colored texture with grain, about as hard to decode
as a photograph, read from the page cache. Rows `end to end` are images per second of wall time:

- `loading`: decode and resize, one process
- `synthesis`: cut and paste on decoded images, one process
- `features`, `flow`: the backbone, and features to anomaly map and score
- `predict`: everything in one process, like `semflow predict`
- `training data, 2 workers`: decoding and synthesis for the trainer, including the start of the workers
- `training`: features and training step on images in memory

`synthesis_not_bottleneck` is the rate of `training data, 2 workers` over that of `training`; above 1 the trainer never
waits.
"""

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset

from semflow.data import ImageFolder, Sample
from semflow.synthesis import CutPaste, SyntheticAnomalies, synthesize
from semflow.training.loading import batches
from semflow.training.stepping import adam, train_on_batch

from .recipes import Case
from .timing import Report, Variant, in_turns, ratio, using_threads

__all__ = ["measure_files", "png_folder"]

Run = Callable[[], object]


@contextmanager
def png_folder(count: int, side: int = 1024) -> Iterator[Path]:
    """Create a temporary folder of pictures."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        for k in range(count):
            coarse = Image.fromarray(rng.integers(40, 200, (16, 16, 3), np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            grain = rng.integers(-6, 7, (side, side, 1), np.int16)
            pixels = np.clip(np.asarray(coarse, np.int16) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(Path(name, f"{k:03}.png"), compress_level=1)
        yield Path(name)


def measure_files(report: Report, variant: Variant, folder: Path, blocks: int, rounds: int, repeat: int = 4) -> None:
    """Measure the rows of SANFlow on a backbone, and `synthesis_not_bottleneck`."""
    images = ImageFolder(folder, 256)
    with using_threads(variant.threads):
        case = Case("sanflow", variant.backbone, variant.batch, blocks)
        work = parts(case, images, SyntheticAnomalies(ConcatDataset([images] * repeat)))
        seconds = in_turns({name: run for name, (_, run) in work.items()}, rounds)
    rates = {name: sorted(count / one.wall for one in seconds[name]) for name, (count, _) in work.items()}
    for name, values in rates.items():
        report.row(
            "end to end", what=name, backbone=variant.backbone, blocks=blocks, batch=variant.batch,
            threads=variant.threads, images_per_s=round(statistics.median(values), 2),
        )  # fmt: skip
    waits = {"data": seconds["training"], "training": seconds["training data, 2 workers"]}
    scale = work["training data, 2 workers"][0] / variant.batch
    found = ratio(waits, "data", "training", "wall")
    report.ratio(
        "synthesis_not_bottleneck" + variant.suffix,
        {key: round(scale * float(found[key]), 3) for key in ("median", "low", "high")},
    )
    del case, work
    gc.collect()


def parts(case: Case, images: ImageFolder, epoch: SyntheticAnomalies[Sample]) -> dict[str, tuple[int, Run]]:
    """Return the parts by name, each with the number of images of a run and the run."""
    detector, batch = case.detector, len(case.images)
    samples = [images[k] for k in range(len(images))]
    case.images = torch.stack([sample.image for sample in samples[:batch]])
    case.maps = detector.features(case.images)
    optimizer, paste = adam(detector, detector.provenance.training), CutPaste()

    def synthesis() -> None:
        for k, sample in enumerate(samples):
            donor, kind = samples[k - 1].image, ("small", "medium", "circle")[k % 3]
            synthesize(paste, sample.image, donor, kind, np.random.default_rng(k))

    def predict() -> None:
        for some in batches(images, batch):
            detector.predict(some.images)

    def train() -> None:
        train_on_batch(detector.train(), optimizer, detector.provenance.training, case.images, case.masks)

    return {
        "loading": (len(images), lambda: [images[k] for k in range(len(images))]),
        "synthesis": (len(images), synthesis),
        "features": (batch, case.features()),
        "flow": (batch, case.infer()),
        "predict": (len(images), predict),
        "training data, 2 workers": (len(epoch), lambda: list(batches(epoch, 4, workers=2))),
        "training": (batch, train),
    }
