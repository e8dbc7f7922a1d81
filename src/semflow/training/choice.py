"""Choice of whether to use a trained flow, by held-out normal images with synthetic defects."""

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from semflow._defaults import own_defaults
from semflow.bases import Memory
from semflow.detectors import Detector, NormalBatch
from semflow.flows import OptionalFlow
from semflow.metrics import aupro, auroc
from semflow.synthesis import Blemishes

from .config import TrainingConfig
from .distributed import Processes
from .loading import checked

LEAST, SHARE, MOST = 10, 5, 24
FILLED, DEFECTS, STORED = 48, 3, 2000
MARGIN = 0.035
MAPS_BYTES = 2**31  # of feature maps that are computed once; others are computed with and without the flows


def optional_flows(detector: Detector) -> list[OptionalFlow]:
    """Return the flows of a detector that may be left out.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> optional_flows(cflow_ad(Backbone("resnet18", "random")))
        []
    """
    return [module for module in detector.flows.modules() if isinstance(module, OptionalFlow)]


def held_for_choice(images: int) -> list[int]:
    """Return the positions of a fifth of the images, at most 24, evenly spaced; none for fewer than 10 images.

    >>> held_for_choice(20), held_for_choice(9), len(held_for_choice(1000))
    ([2, 7, 12, 17], [], 24)
    """
    return _spread(range(images), min(images // SHARE, MOST)) if images >= LEAST else []


@own_defaults()
@torch.no_grad()
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
    dataset, flows = checked(dataset), optional_flows(detector)
    normal, defective, masks = _held_out_images(dataset, held, seed)
    rest = sorted(set(range(len(cast(Sized, dataset)))) - set(held))
    fill = _spread(rest, min(len(rest), FILLED))
    images = [cast(Tensor, dataset[i].image) for i in fill]
    known = _with_maps(detector, images, [*normal, *defective], size=batch_size)
    quality = []
    for used in (False, True):
        for flow in flows:
            flow.use(used)
        with _at_most(STORED, detector):
            detector.fit_base(known[0])
        detector.fit_score(known[0])
        scores, maps = _scored(detector, known[1])
        labels = torch.tensor([0] * len(normal) + [1] * len(defective))
        truth = torch.cat([torch.zeros(len(normal), *masks.shape[1:], dtype=torch.bool), masks])
        quality.append((auroc(scores, labels) + aupro(maps, truth)) / 2)
    gain = quality[1] - quality[0]
    for flow in flows:
        flow.use(gain > MARGIN, gain)
    return gain


def choose_together(
    detector: Detector,
    dataset: Dataset[Any],
    held: Sequence[int],
    rest: Sequence[int],
    training: TrainingConfig,
    processes: Processes,
) -> None:
    """Choose in the first process whether the flows are used, and send the choice to the others.

    Flows are left out if no position is in `held`; bases are fitted to some of the `rest`.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> from semflow.training.distributed import ALONE
        >>> choose_together(cflow_ad(Backbone("resnet18", "random")), [], [], [], TrainingConfig(), ALONE)
    """
    flows, images = optional_flows(detector), Subset(dataset, [*held, *rest])

    def chosen() -> list[tuple[bool, float]]:
        choose_flow(detector, images, range(len(held)), batch_size=training.batch_size, seed=training.seed)
        return [(flow.used, flow.gain) for flow in flows]

    for flow, choice in zip(flows, processes.first(chosen) if held else [(False, 0.0)] * len(flows), strict=True):
        flow.use(*choice)


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
        pairs.append(blemishes(image, donor, blemishes.kinds[number % len(blemishes.kinds)], rng))
    return normal, [image for image, _ in pairs], torch.stack([mask for _, mask in pairs])


def _with_maps(detector: Detector, *parts: Sequence[Tensor], size: int) -> list[list[NormalBatch]]:
    """Return the batches of each part on the device, with feature maps as far as these fit into MAPS_BYTES."""
    found: list[list[NormalBatch]] = []
    left = MAPS_BYTES
    with detector.reading() as still:
        for images in parts:
            found.append([])
            for start in range(0, len(images), size):
                batch = torch.stack(list(images[start : start + size])).to(detector.device)
                maps = still.features(batch) if left > 0 else None
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
