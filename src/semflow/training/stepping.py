"""Optimizer steps on one batch: one step on whole maps, or many on random groups of locations."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from semflow.detectors import Detector, location_masks
from semflow.detectors.regions import at_scales
from semflow.errors import ConfigError, TrainingError
from semflow.flows import ScaleWise
from semflow.functional import take_locations
from semflow.nn import PositionTables, Statistics

from .config import TrainingConfig
from .distributed import ALONE, Processes


class Watch:
    """Clips gradients, counts clipped steps, and raises at the first loss or gradient that is not finite.

    Reading values waits for the device, so on GPUs it happens only once per `every` steps, and before anything is
    saved. With `every=1` the weights stay as they were before the step.

    Args:
        clip: largest norm of a gradient; None disables clipping.
        every: steps between two checks.
        advice: returns the end of error messages.
    """

    def __init__(self, clip: float | None = None, every: int = 1, advice: Callable[[], str] = lambda: "") -> None:
        self.clip, self.every, self.advice, self.steps = clip, every, advice, 0
        self.where = ""
        self.clipped, self.largest = 0, 0.0  # of the steps that have been checked
        self._unchecked: list[Tensor] = []

    def step(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """Clip the gradients of the parameters before an optimizer step."""
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if self.clip is None else self.clip)
        self.steps += 1
        self._unchecked.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        if len(self._unchecked) >= self.every:
            self.check()

    def check(self) -> None:
        """Raise TrainingError if the loss or the norm of the gradient was not finite in one of the steps so far."""
        if not self._unchecked:
            return
        first, values = self.steps - len(self._unchecked) + 1, torch.stack(self._unchecked).tolist()
        self._unchecked.clear()
        for number, (loss, norm) in enumerate(values, first):
            at = f"at step {number}{self.where}"
            if not math.isfinite(loss):
                raise TrainingError(
                    f"loss must be finite, but got {loss} {at}, with a gradient of norm {norm:.5g}{self.advice()}"
                )
            if not math.isfinite(norm):
                raise TrainingError(
                    f"gradient must have a finite norm, but got {norm} {at}, with a loss of {loss:.5g}{self.advice()}"
                )
            self.clipped += self.clip is not None and norm > self.clip
            self.largest = max(self.largest, norm)

    def begin(self, where: str = "", steps: int = 0, clipped: int = 0, largest: float = 0.0) -> None:
        """Restart the counts, from zero or from a checkpoint; `where` follows the step's number in messages."""
        self.check()
        self.where, self.steps, self.clipped, self.largest = where, steps, clipped, largest


def adam(detector: Detector, training: TrainingConfig) -> torch.optim.Adam:
    """Return Adam over the trainable parameters, as one fused kernel if the device has it (a third of the time)."""
    parameters = detector.trainable()
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    groups = [{"params": parameters}]  # may be empty
    return torch.optim.Adam(groups, training.learning_rate, weight_decay=training.weight_decay, fused=fused)


def check_locations(detector: Detector, training: TrainingConfig) -> None:
    """Raise ConfigError if training on groups of locations is asked for, but the flows do not allow it."""
    flows = detector.flows
    if training.locations is not None and not (isinstance(flows, ScaleWise) and "sample" not in flows.events):
        raise ConfigError(
            f"flows must be one per scale and map each location on its own to train on {training.locations} locations "
            f"per step, but got {type(flows).__name__} with events {', '.join(flows.events)}; set locations to None"
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
    makes one step per batch with the gradients of all groups.

    Args:
        detector: detector in training mode.
        optimizer: optimizer of its trainable parameters.
        training: settings of which `locations`, `clip`, `mask_resize` and `guard` are used.
        images: (B, 3, H, W) in [0, 1]; a placeholder image if this process has no part of the batch.
        anomaly_masks: (B, H, W), 1 where anomalous; None if all is normal.
        maps: feature maps of the images, if known.
        seed: integers from which the groups are drawn.
        watch: clips and checks the gradients; None makes a new one.
        processes: processes with a part of the batch each; the detector must be `shared` among them.
        batch: number of images of all parts; None if this is the whole batch.
    """
    stepper = _Stepper(optimizer, detector.trainable(), watch or Watch(training.clip), processes)
    batch = len(images) if batch is None else batch
    with processes.idling(not processes.part(range(batch))):
        if training.locations is None:
            terms = detector.loss(images, anomaly_masks, maps, training.mask_resize, training.guard)
            stepper.step(terms.total)
            return torch.stack([t.detach() for t in terms])
        maps = detector.feature_maps(images) if maps is None else maps
        return _train_on_groups(stepper, detector, training, images, anomaly_masks, maps, seed, batch)


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
    statistics = detector.statistics(seen, maps)
    leaves = [None if s is None else _leaf(s) for s in statistics]
    sums = torch.zeros(4, device=images.device)
    rng = np.random.default_rng(tuple(seed))
    for scale, (x, leaf) in enumerate(zip(maps, leaves, strict=True)):
        size = x.shape[2] * x.shape[3]
        count = batch * size
        size_k = (x.shape[2], x.shape[3])
        mask, ignore = location_masks(anomaly_masks, size_k, training.mask_resize, training.guard, cells[scale])
        context, base = detector.context(x), detector.training_base(scale)
        for drawn in torch.from_numpy(rng.permutation(count)).to(x.device).split(locations):
            group, empty = _own_part(drawn, size, batch, stepper.processes)
            position = context.take(group) if isinstance(context, PositionTables) else context
            z, log_det = flows[scale](take_locations(x, group), position)
            masks = (None if m is None else take_locations(m, group) for m in (mask, ignore))
            drawn_statistics = None if leaf is None else leaf.take(group)
            with stepper.processes.idling(empty):
                terms = detector.objective(z, log_det, "location", base, drawn_statistics, *masks)
                stepper.step(terms.total)
            sums += torch.stack([t.detach() for t in terms]) * (len(drawn) / count)
    # The variance head steps with the mean over the groups' gradients.
    outputs, gradients = [], []
    for s, leaf in zip(statistics, leaves, strict=True):
        if s is not None and leaf is not None:
            groups = -(-batch * s.beta.shape[2] * s.beta.shape[3] // locations)
            for value, copy in zip(s, leaf, strict=True):
                if value is not None and copy is not None and copy.grad is not None:
                    outputs.append(value)
                    gradients.append(copy.grad / groups)
    if outputs:
        stepper.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs, gradients)
        stepper.apply(torch.zeros((), device=outputs[0].device))
    return sums


def _own_part(drawn: Tensor, size: int, batch: int, processes: Processes) -> tuple[Tensor, bool]:
    """Return the locations of a group in this process's part of a batch, or one placeholder and True."""
    if processes.count == 1:
        return drawn, False
    first, last = (size * image for image in processes.span(batch))
    group = drawn[(drawn >= first) & (drawn < last)] - first
    return (group, False) if len(group) else (drawn.new_zeros(1), True)


def _leaf(statistics: Statistics) -> Statistics:
    """Detach statistics, so that they collect the gradients of all groups."""
    values = (None if x is None else x.detach().requires_grad_(x.requires_grad) for x in statistics)
    return Statistics(*values)  # type: ignore[arg-type]


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
        (loss if self.processes.count == 1 else loss / self.processes.count).backward()
        self.apply(loss)

    def apply(self, loss: Tensor) -> None:
        """Step with the gradients that the parameters have."""
        self.processes.add_gradients(self.parameters)
        self.watch.step(loss, self.parameters)
        self.optimizer.step()
