"""Optimizer steps on one batch: one step on whole maps, or many on random groups of locations."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from semflow._devices import to_device
from semflow._memory import suggesting
from semflow.detectors import Detector, location_masks
from semflow.detectors.regions import at_scales
from semflow.errors import ConfigError
from semflow.features.deferring import deferred_compiler
from semflow.flows import ScaleWise
from semflow.functional import take_locations
from semflow.nn import PositionTables, Statistics
from semflow.objectives import Terms

from .config import TrainingConfig
from .cutting import at_once
from .distributed import ALONE, Processes
from .predicted import Predicted
from .sharing import WholeBatch
from .watching import Watch

BF16_DEVICES = ("cuda",)
"""Devices that train in bfloat16.

On CPUs, gradients of convolutions whose kernel is larger than their map are wrong there in torch 2.13 (oneDNN).
"""


def adam(detector: Detector, training: TrainingConfig, fused: bool = True) -> torch.optim.Adam:
    """Return Adam over the trainable parameters, as one fused kernel if the device has it (a third of the time)."""
    parameters = detector.trainable()
    fused = fused and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    groups = [{"params": parameters}]  # may be empty
    with deferred_compiler():  # which recipes that are not trained never need
        return torch.optim.Adam(groups, training.learning_rate, weight_decay=training.weight_decay, fused=fused)


def check_steps(detector: Detector, training: TrainingConfig) -> None:
    """Raise ConfigError if the detector allows no groups of locations, no several batches per step or no bfloat16.

    The share of a batch in a squashed loss depends on the other batches.
    """
    like = detector.reference
    if training.precision == "bf16" and (like.dtype != torch.float32 or like.device.type not in BF16_DEVICES):
        raise ConfigError(f"precision must be float32 for {like.dtype} on device {like.device.type}, but got bf16")
    if training.accumulate > 1 and (detector.objective.squash or detector.objective.boundary):
        kind = "squashed" if detector.objective.squash else "boundary"
        raise ConfigError(f"accumulate must be 1 for a {kind} loss, but got {training.accumulate}; use batch_size")
    flows = detector.flows
    if training.locations is not None and not (isinstance(flows, ScaleWise) and "sample" not in flows.events):
        raise ConfigError(
            f"flows must be one per scale and map each location on its own to train on {training.locations} locations "
            f"per step, but got {type(flows).__name__} with events {', '.join(flows.events)}; set locations to None"
        )


def check_batch(training: TrainingConfig, processes: Processes) -> None:
    """Raise ConfigError if a batch has no image for some process."""
    if training.batch_size < processes.count:
        raise ConfigError(
            f"batch_size must be at least the number of processes, {processes.count}, but got {training.batch_size}"
        )


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
    """Train on a batch and return the loss before each step: total, NLL, BCE and KL.

    Whole maps make one step. With `training.locations` = n, the locations of each scale are split at random into groups
    of n, and every group makes a step of its scale's flow, as in CFLOW-AD. The variance head, which needs whole images,
    makes one step per batch with the gradients of all groups. With `training.accumulate`, a batch of more than
    `training.batch_size` images is computed in chunks that add up to one step.

    Args:
        detector: detector in training mode.
        optimizer: optimizer of its trainable parameters.
        training: settings of the step.
        images: (B, C, H, W) in [0, 1]; a placeholder image if this process has no part of the batch.
        anomaly_masks: (B, H, W), 1 where anomalous; None if all is normal.
        maps: feature maps of the images, if known.
        seed: integers from which the groups are drawn.
        watch: clips and checks the gradients; None makes a new one.
        processes: processes with a part of the batch each; the detector must be `shared` among them.
        batch: number of images of all parts; None if this is the whole batch.
    """
    stepper = _Stepper(optimizer, detector.trainable(), watch or Watch(training.clip), processes)
    batch = len(images) if batch is None else batch
    chunks = training.accumulate > 1 and batch > training.batch_size
    with suggesting(training.batch_size if chunks else batch, processes.count, _same_steps(detector, training)):
        if chunks:
            return _train_in_chunks(stepper, detector, training, images, anomaly_masks, maps, batch)
        return _train_at_once(stepper, detector, training, images, anomaly_masks, maps, seed, batch)


def _same_steps(detector: Detector, training: TrainingConfig) -> str:
    """Return the end of the advice to halve the batch size."""
    same = (
        training.locations is None
        and training.tilt is None
        and not (detector.objective.squash or detector.objective.boundary)
    )
    twice = f" with training.accumulate = {2 * training.accumulate}, which makes the same steps"
    return twice if same and training.batch_size % 2 == 0 else ""


def _train_at_once(
    stepper: "_Stepper",
    detector: Detector,
    training: TrainingConfig,
    images: Tensor,
    anomaly_masks: Tensor | None,
    maps: Sequence[Tensor] | None,
    seed: Sequence[int],
    batch: int,
) -> Tensor:
    with stepper.processes.idling(not stepper.processes.part(range(batch))):
        if training.locations is None:
            terms = _loss(detector, training, images, anomaly_masks, maps)
            stepper.step(terms.total)
            return torch.stack([t.detach() for t in terms])
        with _computing(training, images):
            maps = _maps(detector, images) if maps is None else maps
        return _train_on_groups(stepper, detector, training, images, anomaly_masks, maps, seed, batch)


def _computing(training: TrainingConfig, x: Tensor) -> AbstractContextManager[object]:
    """Return the context of a forward pass. Weights change between two of them, so casts are not cached."""
    if training.precision == "float32":
        return nullcontext()
    return torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)


def _maps(detector: Detector, images: Tensor) -> list[Tensor]:
    """Compute feature maps, which keep the type of the images under autocast, like those that are known."""
    parts = images.split(at_once(detector.provenance.tiles, len(images)))
    found = [detector.feature_maps(part) for part in parts]
    return [(torch.cat(maps) if len(maps) > 1 else maps[0]).to(images.dtype) for maps in zip(*found, strict=True)]


def _loss(
    detector: Detector,
    training: TrainingConfig,
    images: Tensor,
    anomaly_masks: Tensor | None,
    maps: Sequence[Tensor] | None,
    statistics: Sequence[Statistics | None] | None = None,
) -> Terms:
    with _computing(training, images):
        maps = _maps(detector, images) if maps is None and training.precision == "bf16" else maps
        return detector.loss(images, anomaly_masks, maps, training.mask_resize, training.guard, statistics)


def _train_in_chunks(
    stepper: "_Stepper",
    detector: Detector,
    training: TrainingConfig,
    images: Tensor,
    anomaly_masks: Tensor | None,
    maps: Sequence[Tensor] | None,
    batch: int,
) -> Tensor:
    """Step with the gradient of a batch that is computed in chunks, of each of which this process has a part.

    The variance head, whose batch norms depend on the whole batch, predicts all of it at once.
    """
    processes, size = stepper.processes, training.batch_size
    own = [len(processes.part(range(k, min(k + size, batch)))) for k in range(0, batch, size)]

    def counted(size: tuple[int, int]) -> Tensor:
        ((_, ignored),) = detector.masks_at([size], images, anomaly_masks, training.mask_resize, training.guard)
        counted = torch.ones(len(images), *size, device=images.device) if ignored is None else ~(ignored > 0)
        return counted[: sum(own)].sum(dtype=torch.int64)  # none of a placeholder

    whole = WholeBatch(batch, counted, processes)
    stepper.optimizer.zero_grad(set_to_none=True)
    predicted = None
    if detector.head is not None and any(p.requires_grad for p in detector.head.parameters()):
        with processes.idling(not sum(own)), _computing(training, images):
            maps = _maps(detector, images) if maps is None else maps
            predicted = Predicted(detector.statistics(detector.see(images).images, maps))
    parts = []
    for stop, count in zip(accumulate(own), own, strict=True):
        span = slice(stop - count, stop) if count else slice(0, 1)  # a placeholder
        masks = None if anomaly_masks is None else anomaly_masks[span]
        with processes.idling(not count), whole.chunk(detector, max(1, count), not count):
            known = None if predicted is None else predicted.of(span)
            terms = _loss(detector, training, images[span], masks, maps and [x[span] for x in maps], known)
            stepper.add(terms.total)
        parts.append(torch.stack([t.detach() for t in terms]))
    if predicted is not None:
        predicted.backward()
    sums = torch.stack(parts).sum(0)
    stepper.apply(sums[0])
    return sums


def _train_on_groups(
    stepper: "_Stepper",
    detector: Detector,
    training: TrainingConfig,
    images: Tensor,
    anomaly_masks: Tensor | None,
    maps: Sequence[Tensor],
    seed: Sequence[int],
    batch: int,
) -> Tensor:
    flows, locations = cast(ScaleWise, detector.flows), cast(int, training.locations)  # see `check_locations`
    seen, inside = detector.see(images)
    cells = at_scales(inside, maps, detector.localizes)
    with _computing(training, images):
        statistics = detector.statistics(seen, maps)
    predicted = Predicted(statistics)
    sums = torch.zeros(4, device=images.device)
    rng = np.random.default_rng(tuple(seed))
    for scale, (x, leaf) in enumerate(zip(maps, predicted.leaves, strict=True)):
        size = x.shape[2] * x.shape[3]
        count = batch * size
        size_k = (x.shape[2], x.shape[3])
        mask, ignore = location_masks(anomaly_masks, size_k, training.mask_resize, training.guard, cells[scale])
        context, base = detector.context(x), detector.training_base(scale)
        for drawn in torch.from_numpy(rng.permutation(count)).split(locations):
            group, empty = _own_part(drawn, size, batch, stepper.processes)
            group = to_device(group, x.device)
            position = context.take(group) if isinstance(context, PositionTables) else context
            masks = (None if m is None else take_locations(m, group) for m in (mask, ignore))
            drawn_statistics = None if leaf is None else leaf.take(group)
            with stepper.processes.idling(empty):
                with _computing(training, images):
                    z, log_det = flows[scale](take_locations(x, group), position)
                    terms = detector.objective(z, log_det, "location", base, drawn_statistics, *masks)
                stepper.step(terms.total)
            sums += torch.stack([t.detach() for t in terms]) * (len(drawn) / count)
    # The variance head steps with the mean over the groups' gradients.
    stepper.optimizer.zero_grad(set_to_none=True)
    if predicted.backward([0 if s is None else -(-batch * s.beta[0, 0].numel() // locations) for s in statistics]):
        stepper.apply(torch.zeros((), device=images.device))
    return sums


def _own_part(drawn: Tensor, size: int, batch: int, processes: Processes) -> tuple[Tensor, bool]:
    """Return the locations of a group in this process's part of a batch, or one placeholder and True."""
    if processes.count == 1:
        return drawn, False
    first, last = (size * image for image in processes.span(batch))
    group = drawn[(drawn >= first) & (drawn < last)] - first
    return (group, False) if len(group) else (drawn.new_zeros(1), True)


@dataclass(frozen=True)
class _Stepper:
    """Optimizer steps that all processes make together."""

    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    watch: Watch
    processes: Processes

    def step(self, loss: Tensor) -> None:
        """Step down a loss that all processes have in common, of which each differentiates its share."""
        self.optimizer.zero_grad(set_to_none=True)
        self.add(loss)
        self.apply(loss)

    def add(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        (loss if self.processes.count == 1 else loss / self.processes.count).backward()

    def apply(self, loss: Tensor) -> None:
        """Step with the gradients that the parameters have."""
        self.processes.add_gradients(self.parameters)
        self.watch.step(loss, self.parameters)
        self.optimizer.step()
