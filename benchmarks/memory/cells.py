"""A cell of the study: one row on one category from one seed, at one magnification of the images."""

import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from semflow.metrics import ImageAccumulator, PixelAccumulator
from semflow.training.choice import LARGEST_SPREAD

from ..shared.datasets import Data
from ..shared.record import peak_memory
from ..shared.store import Key
from ..shared.study import Failure, Job, measure_cells
from .maps import Study, pixels
from .rows import FEATURES, LATENTS, ROWS, RULE, Setup

TOPS = {"image_max": 0.0, "image_0.3": 0.003, "image_1": 0.01, "image_3": 0.03}
"""Image scores: the mean of the highest share of the map."""


@dataclass(frozen=True)
class StudyCell:
    """One row on one category from one seed, with images enlarged by a magnification."""

    row: str
    data: Data
    fingerprint: str
    seed: int
    magnification: float
    setup: Setup
    cost: float = 1.0

    @property
    def key(self) -> Key:
        """The name of the cell."""
        return Key(f"{self.row} @ {self.magnification:g}", self.data.category, self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that finished cells are compared by."""
        return {
            "data": {"kind": self.data.kind, "fingerprint": self.fingerprint},
            **asdict(self.setup),
            **asdict(ROWS[self.row]),
        }


def perform(job: Job[StudyCell]) -> list[Failure]:
    """Measure the cells of a job, which share images, features and flows; runs in a separate process."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    first = job.cells[0]
    study = Study(first.data, first.setup, first.seed, first.magnification)

    def measured(cell: StudyCell) -> dict[str, Any]:
        result = measure(cell.row, study)
        found = " ".join(f"{value:.3f}" for value in result["metrics"].values())
        print(f"{cell.key}: {found} in {result['seconds']} s", file=sys.stderr, flush=True)
        return result

    return measure_cells(job, measured, ("scipy",))


def measure(name: str, study: Study) -> dict[str, Any]:
    """Return the metrics of a row on the test images and, as `held_...`, on held-out images with synthetic defects.

    The rule is that of `semflow.training.choose_flow`: latents if the spread of the log-det is at most 0.3.
    """
    began, more = time.perf_counter(), {}
    if name == RULE:
        spread = study.spread()
        more = {"choice": LATENTS if spread <= LARGEST_SPREAD else FEATURES, "spread": spread}
    metrics = figures(more.get("choice", name), study)
    return {
        "metrics": metrics,
        **more,
        "train_images": len(study.images["known"]),
        "held_images": len(study.images["held"]),
        "test_images": len(study.labels),
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": peak_memory(),
        "threads": torch.get_num_threads(),
    }


def figures(name: str, study: Study) -> dict[str, float]:
    """Return the metrics of a row that is not the rule."""

    def make() -> dict[str, float]:
        row = ROWS[name]
        maps = study.maps(row, name).each(lambda x: pixels(x, study.setup.image_size, row.blur))
        both = torch.cat([maps.held, maps.defects])
        marked = torch.cat([torch.zeros(maps.held.shape, dtype=torch.bool), study.defect_masks])
        held = detection(both, marked.flatten(1).any(1).long(), marked)
        return detection(maps.test, study.labels, study.masks) | {f"held_{key}": value for key, value in held.items()}

    found: dict[str, float] = study.keep(("figures", name), make)
    return found


def detection(maps: Tensor, labels: Tensor, masks: Tensor) -> dict[str, float]:
    """Return image AUROC for each of `TOPS`, pixel AUROC and AUPRO."""
    found, flat = {}, maps.flatten(1)
    for name, share in TOPS.items():
        images = ImageAccumulator()
        images.update(flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.mean(1), labels)
        found[name] = images.compute().auroc
    located = PixelAccumulator()
    located.update(maps, masks)
    of_pixels = located.compute()
    return found | {"pixel": of_pixels.auroc, "aupro": of_pixels.aupro}
