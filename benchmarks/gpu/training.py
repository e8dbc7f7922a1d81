"""A training step, from images on the device: that of the trainer in every mode, and the published formulation."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from semflow.detectors import Detector
from semflow.training.stepping import adam, train_on_batch
from semflow.training.watching import Watch

from ..speed.timing import in_turns, missing
from .plan import Plan
from .published import GROUP, pair

Step = Callable[[], object]


def measure(plan: Plan) -> None:
    for batch in (4,) if plan.small else (32, 4):  # 4 is the default of the recipe
        seconds = {}
        for name, make in _sides(plan, batch).items():
            found = plan.record.attempt(f"{name}, batch {batch}", partial(_timed, plan, name, make, batch), least=8.0)
            if found is not None:
                seconds[name] = found
        ours = [value for name, value in seconds.items() if name.startswith("semflow")]
        for name in (as_published := f"published, groups of {GROUP}, float32", "published, whole maps, bfloat16"):
            if ours and name in seconds:
                ratio = seconds[name] / min(ours)
                plan.record.row(f"time of {name}, over the fastest mode, batch {batch}", median=round(ratio, 3))
                if name == as_published and batch == (4 if plan.small else 32):
                    plan.record.figure("training_ratio", ratio)


def _timed(plan: Plan, name: str, make: Callable[[], Step], batch: int) -> float:
    plan.reset_peak()
    seconds = in_turns({name: make()}, 2 if plan.small else 5, plan.device, 0.0 if plan.small else 0.5)[name]
    wall = statistics.median(one.wall for one in seconds)
    plan.record.row(
        f"{name}, batch {batch}", ms=round(1e3 * wall, 2), images_per_s=round(batch / wall, 1), peak_gib=plan.peak()
    )
    return wall


def _sides(plan: Plan, batch: int) -> dict[str, Callable[[], Step]]:
    """Return a function by name that makes the step of one side."""
    low = "bf16" if plan.cuda else "float32"  # what the trainer allows
    sides: dict[str, Callable[[], Step]] = {
        "semflow, eager, float32": lambda: step(plan, plan.build("sanflow"), batch, "float32"),
        "semflow, eager, bfloat16": lambda: step(plan, plan.build("sanflow"), batch, low),
    }
    reason = missing("FrEIA")
    if reason:
        plan.record.skip("the published formulation", reason)
    else:
        sides[f"published, groups of {GROUP}, float32"] = lambda: step(plan, pair(plan)[1], batch, "float32", GROUP)
        sides["published, whole maps, bfloat16"] = lambda: step(plan, pair(plan)[1], batch, low)
    sides["semflow, flows compiled, bfloat16"] = lambda: step(plan, compiled(plan), batch, low)
    return sides


def compiled(plan: Plan) -> Detector:
    """Return SANFlow with compiled flows."""
    detector = plan.build("sanflow")
    detector.flows.compile(dynamic=False, backend="inductor" if plan.cuda else "aot_eager")
    return detector


def step(plan: Plan, detector: Detector, batch: int, precision: str, locations: int | None = None) -> Step:
    """Return the trainer's pass over a batch: a step, or one for each group of locations.

    The learning rate is 0, so that every step has the same weights.
    """
    detector = detector.to(plan.device).train()
    config = replace(detector.provenance.training, batch_size=batch, precision=precision, locations=locations)
    images = plan.images(batch).to(plan.device).float() / 255
    masks = torch.zeros(batch, plan.size, plan.size, dtype=torch.bool, device=plan.device)
    masks[torch.arange(batch) % 4 > 0, plan.size // 4 : plan.size // 2, plan.size // 4 : plan.size // 2] = True
    detector.prepare([images])
    optimizer, watch = adam(detector, config), Watch(config.clip, 32 if plan.cuda else 1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return lambda: train_on_batch(detector, optimizer, config, images, masks, watch=watch)
