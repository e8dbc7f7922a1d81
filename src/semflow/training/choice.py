"""Choice of whether to use a trained flow, by how evenly it stretches the features of normal images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from semflow._channels import alike
from semflow._defaults import own_defaults
from semflow.detectors import Detector, NormalBatch
from semflow.detectors.inputs import check_images
from semflow.detectors.interface import ImageBatch
from semflow.detectors.regions import at_scales
from semflow.errors import ShapeError
from semflow.flows import OptionalFlow

from .categories import positions_by_category
from .config import TrainingConfig
from .cutting import at_once
from .distributed import ALONE, Processes
from .regions import within

LARGEST_SPREAD = 0.3
MOST = 24

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


@own_defaults()
def choose_flow(detector: Detector, batches: Iterable[ImageBatch]) -> float:
    """Use the optional flows of a trained detector, or leave them out, and return the spread of their log-det.

    Distances between latents leave out the log-det. They can be compared between locations only if the flow stretches
    the features of all normal images about equally, as it does on a texture. For an object in front of a background,
    the log-det varies so much that noise in the background becomes farther from the memory than a defect.

    The spread is the standard deviation of log |det| / C over the locations of normal images, averaged over the scales.
    The flows are used if it is at most 0.3.

    Args:
        detector: trained detector; only the choice is changed.
        batches: normal images, with their feature maps if known; iterated over once.

    Example:
        >>> from semflow.recipes import Backbone, memory_flow
        >>> detector = memory_flow(Backbone("resnet18", "random", (4, 8, 16)), 64)
        >>> spread = choose_flow(detector, [torch.rand(4, 3, 64, 64)])
        >>> detector.flows[0].used == (spread <= 0.3)
        True
    """
    flows = optional_flows(detector)
    for flow in flows:
        flow.use(True)
    spread = _log_det_spread(detector, batches)
    _choose(flows, spread)
    return spread


def _choose(flows: Iterable[OptionalFlow], spread: float) -> None:
    for flow in flows:
        flow.use(spread <= LARGEST_SPREAD, spread)


@torch.no_grad()
def _log_det_spread(detector: Detector, batches: Iterable[ImageBatch]) -> float:
    """Return what `choose_flow` describes."""
    found: list[list[Tensor]] = []
    with detector.evaluating():
        for given in batches:
            batch = NormalBatch(given) if isinstance(given, Tensor) else NormalBatch(*given)
            if batch.maps is None:
                check_images(batch.images, detector.reference)
            seen = detector.see(batch.images)
            maps = detector.feature_maps(batch.images) if batch.maps is None else batch.maps
            inside = at_scales(seen.inside, maps, detector.localizes)
            scales = detector.encode_maps(maps, seen.images)
            log_dets = [scale.log_det / scale.z.shape[1] for scale in scales]
            found.append([x.flatten() if m is None else x[m] for x, m in zip(log_dets, inside, strict=True)])
    if not found:
        raise ShapeError("batches must hold at least one batch of normal images, but got none")
    return fmean(torch.cat(scale).double().std(correction=0).item() for scale in zip(*found, strict=True))


class FlowChoice:
    """The choice whether the optional flows of a detector in training are used, in the first of several processes.

    It is made as by `choose_flow` at the end, with at most 24 images; of several categories, the one with the largest
    spread decides. The spread grows during training, so flows for which it is too large after a quarter of the epochs
    are left out at once, and the rest of the training is saved. Flows that were never trained are left out.

    Args:
        detector: detector in training.
        dataset: normal images.
        training: training settings.
        processes: processes that train together.
        known: feature maps of the images by their positions in `dataset`, as far as they are known.
    """

    def __init__(
        self,
        detector: Detector,
        dataset: Dataset[Any],
        training: TrainingConfig,
        processes: Processes = ALONE,
        known: Known = lambda positions: None,
    ) -> None:
        self.detector, self.flows, self.processes = detector, optional_flows(detector), processes
        self.dataset, self.training, self.known = dataset, training, known
        self.early = max(1, round(training.epochs / 4))
        self.trained = bool(training.epochs or detector.provenance.fingerprints)

    def promises(self, epoch: int) -> bool:
        """Return whether to go on training after an epoch."""
        if self.flows and epoch == self.early:
            self.make()
        return all(flow.used for flow in self.flows)

    def make(self) -> None:
        """Use the flows of the detector or leave them out, unless they have been left out."""
        if not self.trained:
            for flow in self.flows:
                flow.use(False)
        elif self.flows and all(flow.used for flow in self.flows):
            _choose(self.flows, self.processes.first(self._spread))

    def _spread(self) -> float:
        categories = positions_by_category(self.dataset).values()
        return max(_log_det_spread(self.detector, self._images(positions)) for positions in categories)

    def _images(self, positions: Sequence[int]) -> Iterator[NormalBatch]:
        """Yield at most 24 of some images, evenly spaced, with their feature maps if they are known."""
        images: Any = within(self.dataset, self.detector)
        used = min(len(positions), MOST)
        chosen = [positions[int((k + 0.5) * len(positions) / used)] for k in range(used)]
        size = at_once(self.detector.provenance.tiles, self.training.batch_size)
        for start in range(0, used, size):
            part = chosen[start : start + size]
            batch = torch.stack(alike([images[i].image for i in part])).to(self.detector.device)
            yield NormalBatch(batch, self.known(part))
