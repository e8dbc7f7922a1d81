"""Choice of whether to use a trained flow, by held-out normal images with synthetic defects."""

import copy
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._defaults import own_defaults
from semflow.bases import Memory
from semflow.detectors import Detector, NormalBatch
from semflow.detectors.encoded import Encoded
from semflow.flows import OptionalFlow
from semflow.metrics import aupro, auroc
from semflow.synthesis import Blemishes, synthesize

from .categories import categories_of
from .config import TrainingConfig
from .cutting import at_once
from .distributed import ALONE, Processes
from .loading import checked
from .regions import within

LEAST, SHARE, MOST = 10, 5, 24
FILLED, DEFECTS, STORED = 48, 3, 2000
MARGIN = 0.035
MAPS_BYTES = 2**31  # of feature maps that are computed once, an eighth for tiles; others are computed again
KEPT_BYTES = 2**29  # of images and maps that stay in memory from the early to the last choice
# Images trained on for each image of an early choice: scoring one costs as much, and is in vain half of the time.
WORTH = 2

Known = Callable[[Sequence[int]], list[Tensor] | None]
"""Feature maps of images by their positions, or None if they are not known."""


def optional_flows(detector: Detector) -> list[OptionalFlow]:
    """Return the flows of a detector that may be left out.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> optional_flows(cflow_ad(Backbone("resnet18", "random")))
        []
    """
    found = [module for module in detector.flows.modules() if isinstance(module, OptionalFlow)]
    return [flow for flow in found if flow.optional]


def held_for_choice(images: int) -> list[int]:
    """Return the positions of a fifth of the images, at most 24, evenly spaced; none for fewer than 10 images.

    >>> held_for_choice(20), held_for_choice(9), len(held_for_choice(1000))
    ([2, 7, 12, 17], [], 24)
    """
    return _spread(range(images), min(images // SHARE, MOST)) if images >= LEAST else []


@own_defaults()
def choose_flow(
    detector: Detector, dataset: Dataset[Any], held: Sequence[int], *, batch_size: int = 8, seed: int = 0
) -> float:
    """Use the optional flows of a trained detector, or leave them out, and return their gain.

    The bases and the constants of the score are fitted to normal images, once with and once without the flows. Held-out
    images are scored as they are and with three synthetic defects each. The gain is the rise of the mean of image AUROC
    and AUPRO between the two, averaged over the categories if there are several. The flows are used if it exceeds
    0.035. The margin is there because flows trained with synthetic anomalies have an advantage on synthetic defects,
    although these are of other kinds, see `Blemishes`.

    Memories store at most 2,000 vectors during the choice. More vectors take longer and do not improve it.

    The bases and the constants of the score are left fitted to a part of the images; fit them to all afterwards.

    Args:
        detector: trained detector; it is changed in place.
        dataset: normal images. The bases are fitted to at most 48 of those that are not held out.
        held: positions of the images that the flows were not trained on.
        batch_size: images per batch.
        seed: seed of the defects.

    Example:
        >>> from semflow.data import Sample
        >>> from semflow.recipes import Backbone, memory_flow
        >>> good = [Sample(torch.rand(3, 64, 64), 0, None, f"{i}.png") for i in range(10)]
        >>> detector = memory_flow(Backbone("resnet18", "random", (4, 8, 16)), 64).eval()
        >>> gain = choose_flow(detector, good, held_for_choice(10))
        >>> detector.flows[0].used == (gain > 0.035)
        True
    """
    return Trial(dataset, held, batch_size, seed).choose(detector)


class FlowChoice:
    """The choice whether the optional flows of a detector in training are used, in the first of several processes.

    It is made by `choose_flow` at the end. Flows whose gain is at most half the margin after a quarter of the epochs
    are left out at once, and the rest of the training is saved. A short training, whose rest costs less than that
    early choice, always goes on.

    Args:
        detector: detector in training.
        dataset: normal images.
        held: positions of the images that the flows are not trained on; empty if there are too few images.
        training: training settings.
        processes: processes that train together.
        known: feature maps of the images by their positions in `dataset`, as far as they are known.
    """

    def __init__(
        self,
        detector: Detector,
        dataset: Dataset[Any],
        held: Sequence[int],
        training: TrainingConfig,
        processes: Processes = ALONE,
        known: Known | None = None,
    ) -> None:
        self.detector, self.flows, self.processes = detector, optional_flows(detector), processes
        self.trial = Trial(dataset, held, training.batch_size, training.seed, known) if held else None
        self.gain = 0.0  # of flows that are left out before the end
        early = max(1, round(training.epochs / 4))
        trained = len(cast(Sized, dataset)) - len(held)
        tried = min(trained, FILLED) + (1 + DEFECTS) * len(held)
        self.early = early if (training.epochs - early) * trained >= WORTH * tried else None

    def promises(self, epoch: int) -> bool:
        """Return whether to go on training after an epoch."""
        if self.trial is None or epoch != self.early:
            return True
        trial, detector = self.trial, self.detector
        same = (detector.features, detector.objective, self.processes)
        still = copy.deepcopy(detector, {id(part): part for part in same})
        gain = self.processes.first(lambda: trial.choose(still.eval()))
        if gain > MARGIN / 2:
            return True
        self.trial, self.gain = None, gain
        return False

    def make(self) -> None:
        """Use the flows of the trained detector or leave them out."""
        trial, choices = self.trial, [(False, self.gain)] * len(self.flows)

        def chosen() -> list[tuple[bool, float]]:
            if trial is not None:
                trial.choose(self.detector)
            return [(flow.used, flow.gain) for flow in self.flows]

        if trial is not None:
            choices = self.processes.first(chosen)
        self.trial = None  # which may hold many feature maps
        for flow, choice in zip(self.flows, choices, strict=True):
            flow.use(*choice)


class Trial:
    """Held-out images with synthetic defects, on which a detector is tried with and without its flows."""

    def __init__(
        self, dataset: Dataset[Any], held: Sequence[int], batch_size: int, seed: int, known: Known | None = None
    ) -> None:
        self.dataset, self.held, self.batch_size, self.seed = checked(dataset), held, batch_size, seed
        self.known = known or (lambda positions: None)
        self.without: float | None = None  # quality without flows, which does not change as they are trained
        self._images: _Images | None = None

    @torch.no_grad()
    def choose(self, detector: Detector) -> float:
        """Do what `choose_flow` describes."""
        flows = optional_flows(detector)
        images = self._images or self._read(detector)
        self._images = images if images.nbytes <= KEPT_BYTES else None

        def quality(used: bool) -> float:
            for flow in flows:
                flow.use(used)
            fill = Encoded(detector, images.fill)
            with _at_most(STORED, detector):
                detector.fit_base(fill)
            detector.fit_score(fill)
            scores, maps = _scored(detector, images.test)
            found = []
            for own in (images.groups == group for group in images.groups.unique()):
                overlap = aupro(maps[own], images.truth[own], inside=maps[own] > -torch.inf)
                found.append((auroc(scores[own], images.labels[own]) + overlap) / 2)
            return fmean(found)

        if self.without is None:
            self.without = quality(False)
        gain = quality(True) - self.without
        for flow in flows:
            flow.use(gain > MARGIN, gain)
        return gain

    def _read(self, detector: Detector) -> "_Images":
        """Read the images, make the defects, and compute the feature maps that are not known."""
        dataset: Any = within(self.dataset, detector)
        normal, defective, masks = _held_out_images(dataset, self.held, self.seed)
        rest = sorted(set(range(len(dataset))) - set(self.held))
        filled = _spread(rest, min(len(rest), FILLED))
        fill = [cast(Tensor, dataset[i].image) for i in filled]
        tiles = detector.provenance.tiles
        left, size = (MAPS_BYTES if tiles is None else MAPS_BYTES // 8), at_once(tiles, self.batch_size)
        parts: list[list[NormalBatch]] = []
        with detector.reading() as still:
            for images, positions in ((fill, filled), (normal, self.held), (defective, None)):
                parts.append([])
                for start in range(0, len(images), size):
                    span = slice(start, start + size)
                    batch = torch.stack(images[span]).to(detector.device)
                    maps = None if positions is None else self.known(positions[span])
                    if maps is None and left > 0:
                        maps = still.feature_maps(batch)
                    left -= sum(x.nbytes for x in maps or ())
                    indices = torch.arange(start, start + len(batch), device=detector.device)
                    parts[-1].append(NormalBatch(batch, maps, indices))
        truth = torch.cat([torch.zeros(len(normal), *masks.shape[1:], dtype=torch.bool), masks])
        labels = torch.tensor([0] * len(normal) + [1] * len(defective))
        names = categories_of(self.dataset) or [""] * len(dataset)
        groups = [sorted(set(names)).index(names[i]) for i in self.held]
        return _Images(parts[0], parts[1] + parts[2], labels, truth, torch.tensor(groups * (1 + DEFECTS)))


class _Images(NamedTuple):
    """Images that bases are fitted to, and those that are scored with labels (B,), masks (B, H, W), categories (B,)."""

    fill: list[NormalBatch]
    test: list[NormalBatch]
    labels: Tensor
    truth: Tensor
    groups: Tensor

    @property
    def nbytes(self) -> int:
        """Size of the images and their feature maps."""
        return sum(x.nbytes for batch in (*self.fill, *self.test) for x in (batch.images, *(batch.maps or ())))


@contextmanager
def _at_most(vectors: int, detector: Detector) -> Iterator[None]:
    """Let the detector's memories store at most this number of vectors."""
    memories = [base for base in detector.bases if isinstance(base, Memory)]
    sizes = [memory.size for memory in memories]
    for memory in memories:
        if isinstance(memory.size, int):
            memory.size = min(memory.size, vectors)
    try:
        yield
    finally:
        for memory, size in zip(memories, sizes, strict=True):
            memory.size = size


def _held_out_images(dataset: Any, held: Sequence[int], seed: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return the held-out images, the same with defects, and the masks (B, H, W) of these."""
    blemishes, rng = Blemishes(), np.random.default_rng((seed, len(held), 2))
    normal = [cast(Tensor, dataset[i].image) for i in held]
    pairs = []
    for number in range(DEFECTS * len(normal)):
        image, donor = normal[number % len(normal)], normal[int(rng.integers(len(normal)))]
        pairs.append(synthesize(blemishes, image, donor, blemishes.kinds[number % len(blemishes.kinds)], rng))
    return normal, [image for image, _ in pairs], torch.stack([mask for _, mask in pairs])


def _scored(detector: Detector, batches: Sequence[NormalBatch]) -> tuple[Tensor, Tensor]:
    """Return scores (B,) and anomaly maps (B, H, W)."""
    found = [detector(batch.images, batch.maps) for batch in batches]
    return torch.cat([p.score.cpu() for p in found]), torch.cat([p.anomaly_map.float().cpu() for p in found])


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Return `count` values at even distances."""
    return [values[int((k + 0.5) * len(values) / count)] for k in range(count)]
