"""One batch of training: one step of the optimiser on whole maps, or many on random groups of locations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from semflow.detectors import Detector, location_masks
from semflow.errors import ConfigError
from semflow.flows import ScaleWise
from semflow.functional import take_locations
from semflow.nn import PositionTables, Statistics

from .config import TrainingConfig
from .distributed import ALONE, Processes
from .watch import Watch

__all__ = ["adam", "check_locations", "train_on_batch"]


def adam(detector: Detector, training: TrainingConfig) -> torch.optim.Adam:
    """Adam over the trainable parameters, in one fused kernel where the device has it (a third of the time)."""
    parameters = detector.trainable()
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(parameters, training.learning_rate, weight_decay=training.weight_decay, fused=fused)


def train_on_batch(
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    training: TrainingConfig,
    images: Tensor,
    anomaly_masks: Tensor | None = None,
    maps: Sequence[Tensor] | None = None,
    seed: Sequence[int] = (0,),
    watch: Watch | None = None,
    processes: Processes = ALONE,
    batch: int | None = None,
) -> Tensor:
    """Train on a batch and tell the loss's terms, (4,): total, NLL, BCE and KL, as they were before each step.

    Whole maps make one step. With `training.locations` = n, the locations of each scale are split at random into groups
    of n and every group makes a step of its scale's flow, as CFLOW-AD trains; the variance head, whose maps belong to
    whole images, makes one step for the batch, with the gradients that all groups have left for it.

    Args:
        detector: in training mode.
        optimizer: of its trainable parameters.
        training: n, the clipping of gradients, and how masks are resized.
        images: (B, 3, H, W) in [0, 1]; where no part of the batch is this process's, any image: it does not count.
        anomaly_masks: (B, H, W), 1 where anomalous; None if all is normal.
        maps: the features of the images, if they are known.
        seed: words that the grouping is drawn from.
        watch: clips the gradients at `training.clip`, counts, and stops at what is not finite; None takes a new one.
        processes: that hold a part of the batch each; the detector must be `shared` among them.
        batch: images of all parts; None where this is the whole batch.

    Raises:
        TrainingError: a loss or a gradient is not finite.
    """
    turn = _Turn(optimizer, detector.trainable(), watch or Watch(training.clip), processes)
    batch = len(images) if batch is None else batch
    first, last = processes.span(batch)
    with processes.idling(first == last):
        if training.locations is None:
            terms = detector.loss(images, anomaly_masks, maps, training.mask_resize, training.guard)
            turn.step(terms.total)
            return torch.stack([t.detach() for t in terms])
        return _train_on_groups(turn, detector, training, images, anomaly_masks, maps, seed, batch)


def _train_on_groups(
    turn: "_Turn",
    detector: Detector,
    training: TrainingConfig,
    images: Tensor,
    anomaly_masks: Tensor | None,
    maps: Sequence[Tensor] | None,
    seed: Sequence[int],
    batch: int,
) -> Tensor:
    flows = cast(ScaleWise, detector.flows)  # see `check_locations`
    locations = cast(int, training.locations)
    maps = detector.features(images) if maps is None else maps
    statistics = detector.statistics(images, maps)
    leaves = [None if s is None else _leaf(s) for s in statistics]
    sums = torch.zeros(4, device=images.device)
    rng = np.random.default_rng(tuple(seed))
    for scale, (x, leaf) in enumerate(zip(maps, leaves, strict=True)):
        size = x.shape[2] * x.shape[3]
        count = batch * size
        mask, ignore = location_masks(anomaly_masks, (x.shape[2], x.shape[3]), training.mask_resize, training.guard)
        context = detector.context(x)
        for drawn in torch.from_numpy(rng.permutation(count)).to(x.device).split(locations):
            group, nothing = _own(drawn, size, batch, turn.processes)
            z, log_det = flows[scale](
                take_locations(x, group), context.take(group) if isinstance(context, PositionTables) else context
            )
            with turn.processes.idling(nothing):
                terms = detector.objective(
                    z,
                    log_det,
                    "location",
                    detector.base,
                    None if leaf is None else leaf.take(group),
                    None if mask is None else take_locations(mask, group),
                    None if ignore is None else take_locations(ignore, group),
                )
                turn.step(terms.total)
            sums += torch.stack([t.detach() for t in terms]) * (len(drawn) / count)
    _step_head(turn, locations, batch, statistics, leaves)
    return sums


def _own(drawn: Tensor, size: int, batch: int, processes: Processes) -> tuple[Tensor, bool]:
    """The locations of a group in this process's part of a batch; if there are none, one that does not count."""
    if processes.count == 1:
        return drawn, False
    first, last = (size * image for image in processes.span(batch))
    group = drawn[(drawn >= first) & (drawn < last)] - first
    return (group, False) if len(group) else (drawn.new_zeros(1), True)


def check_locations(detector: Detector, training: TrainingConfig) -> None:
    """Refuse groups of locations where a flow mixes them, or no flow of a scale can be given those of that scale.

    Raises:
        ConfigError: `training.locations` is given, and a flow's event is the sample, or the flows are not one a scale.
    """
    if training.locations is None:
        return
    if "sample" in detector.flows.events:
        raise ConfigError(
            f"locations = {training.locations} a step needs flows of location by location, but their events are "
            f"{', '.join(detector.flows.events)}; take locations=None, whole maps"
        )
    if not isinstance(detector.flows, ScaleWise):
        raise ConfigError(
            f"locations = {training.locations} a step needs one flow a scale, but flows are a "
            f"{type(detector.flows).__name__}; give them as a list, or take locations=None, whole maps"
        )


def _leaf(statistics: Statistics) -> Statistics:
    """The statistics as the start of a graph, which collects the gradients of every group."""
    values = (None if x is None else x.detach().requires_grad_(x.requires_grad) for x in statistics)
    return Statistics(*values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Turn:
    """What a step takes besides a loss."""

    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    watch: Watch
    processes: Processes

    def step(self, loss: Tensor) -> None:
        """A step down a loss that all processes have in common, of which each differentiates its share."""
        self.optimizer.zero_grad(set_to_none=True)
        (loss if self.processes.count == 1 else loss / self.processes.count).backward()
        self.take(loss)

    def take(self, loss: Tensor) -> None:
        """A step with the gradients that are there."""
        self.processes.add_gradients(self.parameters)
        self.watch.step(loss, self.parameters)
        self.optimizer.step()


def _step_head(
    turn: _Turn,
    locations: int,
    batch: int,
    statistics: Sequence[Statistics | None],
    leaves: Sequence[Statistics | None],
) -> None:
    """The head's own step, on the mean of the groups' gradients (their number is the same for every location)."""
    outputs, gradients = [], []
    for s, leaf in zip(statistics, leaves, strict=True):
        if s is None or leaf is None:
            continue
        groups = -(-batch * s.beta.shape[2] * s.beta.shape[3] // locations)
        for value, copy in zip(s, leaf, strict=True):
            if value is not None and copy is not None and copy.grad is not None:
                outputs.append(value)
                gradients.append(copy.grad / groups)
    if outputs:
        turn.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs, gradients)
        turn.take(torch.zeros((), device=outputs[0].device))
