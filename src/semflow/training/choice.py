"""Choice of whether to use a trained flow, by held-out normal images with synthetic defects."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._defaults import own_defaults
from semflow.bases import Memory
from semflow.detectors import Detector, NormalBatch
from semflow.flows import OptionalFlow
from semflow.metrics import aupro, auroc
from semflow.synthesis import Blemishes, synthesize

from .config import TrainingConfig
from .cutting import at_once
from .distributed import ALONE, Processes
from .loading import checked
from .regions import within

LEAST, SHARE, MOST = 10, 5, 24
FILLED, DEFECTS, STORED = 48, 3, 2000
MARGIN = 0.035
MAPS_BYTES = 2**31  # of feature maps that are computed once, a quarter for tiles; others are computed again


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
    and AUPRO between the two. The flows are used if it exceeds 0.035. The margin is there because flows trained with
    synthetic anomalies have an advantage on synthetic defects, although these are of other kinds, see `Blemishes`.

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
    are left out at once, and the rest of the training is saved.

    Args:
        detector: detector in training.
        dataset: normal images.
        held: positions of the images that the flows are not trained on; empty if there are too few images.
        training: training settings.
        processes: processes that train together.
    """

    def __init__(
        self,
        detector: Detector,
        dataset: Dataset[Any],
        held: Sequence[int],
        training: TrainingConfig,
        processes: Processes = ALONE,
    ) -> None:
        self.detector, self.flows, self.processes = detector, optional_flows(detector), processes
        self.trial = Trial(dataset, held, training.batch_size, training.seed) if held else None
        self.early = max(1, round(training.epochs / 4))
        self.gain = 0.0  # of flows that are left out before the end

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
        for flow, choice in zip(self.flows, choices, strict=True):
            flow.use(*choice)


class Trial:
    """Held-out images with synthetic defects, on which a detector is tried with and without its flows."""

    def __init__(self, dataset: Dataset[Any], held: Sequence[int], batch_size: int, seed: int) -> None:
        self.dataset, self.held, self.batch_size, self.seed = checked(dataset), held, batch_size, seed
        self.without: float | None = None  # quality without flows, which does not change as they are trained

    @torch.no_grad()
    def choose(self, detector: Detector) -> float:
        """Do what `choose_flow` describes."""
        flows = optional_flows(detector)
        dataset: Any = within(self.dataset, detector)
        normal, defective, masks = _held_out_images(dataset, self.held, self.seed)
        rest = sorted(set(range(len(dataset))) - set(self.held))
        images = [cast(Tensor, dataset[i].image) for i in _spread(rest, min(len(rest), FILLED))]
        fill, test = _with_maps(detector, images, [*normal, *defective], size=self.batch_size)
        labels = torch.tensor([0] * len(normal) + [1] * len(defective))
        truth = torch.cat([torch.zeros(len(normal), *masks.shape[1:], dtype=torch.bool), masks])

        def quality(used: bool) -> float:
            for flow in flows:
                flow.use(used)
            with _at_most(STORED, detector):
                detector.fit_base(fill)
            detector.fit_score(fill)
            scores, maps = _scored(detector, test)
            return (auroc(scores, labels) + aupro(maps, truth, inside=maps > -torch.inf)) / 2

        if self.without is None:
            self.without = quality(False)
        gain = quality(True) - self.without
        for flow in flows:
            flow.use(gain > MARGIN, gain)
        return gain


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


def _with_maps(detector: Detector, *parts: Sequence[Tensor], size: int) -> list[list[NormalBatch]]:
    """Return the batches of each part on the device, with feature maps as far as these fit into MAPS_BYTES."""
    found: list[list[NormalBatch]] = []
    tiles = detector.provenance.tiles
    left, size = (MAPS_BYTES if tiles is None else MAPS_BYTES // 4), at_once(tiles, size)
    with detector.reading() as still:
        for images in parts:
            found.append([])
            for start in range(0, len(images), size):
                batch = torch.stack(list(images[start : start + size])).to(detector.device)
                maps = still.feature_maps(batch) if left > 0 else None
                left -= sum(x.nbytes for x in maps or ())
                indices = torch.arange(start, start + len(batch), device=detector.device)
                found[-1].append(NormalBatch(batch, maps, indices))
    return found


def _scored(detector: Detector, batches: Sequence[NormalBatch]) -> tuple[Tensor, Tensor]:
    """Return scores (B,) and anomaly maps (B, H, W)."""
    found = [detector(batch.images, batch.maps) for batch in batches]
    return torch.cat([p.score.cpu() for p in found]), torch.cat([p.anomaly_map.float().cpu() for p in found])


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Return `count` values at even distances."""
    return [values[int((k + 0.5) * len(values) / count)] for k in range(count)]
