"""Speed of SANFlow on a CUDA device: uint8 images in host memory to scores, and a training step.

Batches are in pinned memory and are copied while the previous one is processed. Features and flows run under bfloat16
autocast (log-dets and log-probabilities stay in float32) and compiled; `reduce-overhead` replays CUDA graphs. The
published formulation, FrEIA's blocks on whole maps and on groups of 256 locations, runs on the same features.

Nothing here has run on a CUDA device yet: it is tested on a CPU, where neither autocast nor graphs are used.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from semflow.detectors import Detector
from semflow.functional import to_locations
from semflow.recipes import build
from semflow.training.stepping import adam, train_on_batch

from .flows import Plan, Scale, inference, settings, training_step
from .timing import Report, best, in_turns, missing, ratio

__all__ = ["measure_cuda", "stream"]

GROUP = 256  # locations per step, as published


def stream(detector: Detector, batches: list[Tensor], device: str, compiled: bool = True) -> Callable[[], object]:
    """Return scoring of uint8 batches (B, 3, H, W) from host memory, in the fastest mode of the device."""
    cuda = device.startswith("cuda")
    detector = detector.to(device).eval()

    def score(images: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            log_probs = detector.log_probs(images.float() / 255)[0]
        return detector.scorer([x.float() for x in log_probs], (images.shape[2], images.shape[3]))[1]

    call = torch.compile(score, mode="reduce-overhead", dynamic=False) if compiled else score
    waiting = [batch.pin_memory() if cuda else batch for batch in batches]

    def run() -> object:
        with torch.inference_mode():
            found = [
                call(batch.to(device, non_blocking=True)).clone() for batch in waiting
            ]  # a graph overwrites its output
            return torch.cat(found).cpu()

    return run


def published(scale: Scale, whole: bool, training: bool) -> Callable[[], None]:
    """Return FrEIA's blocks on all locations of a batch, or on one random group after the other."""
    rows = to_locations(scale.x)
    groups = [torch.arange(len(rows))] if whole else list(torch.randperm(len(rows)).split(GROUP))
    make = training_step if training else inference
    given = [(rows[group], scale.condition[group]) for group in groups]
    runs = [make(scale.freia, lambda pair=pair: scale.freia(*pair)) for pair in given]

    def run() -> None:
        for one in runs:
            one()

    return run


def measure_cuda(
    report: Report, device: str, backbone: str, batch: int, blocks: int, rounds: int, size: int = 256
) -> None:
    """Measure `cuda_images_per_s`, `cuda_infer` and `cuda_train` against the faster published form."""
    compiled = device.startswith("cuda")
    arguments = {"backbone": backbone, "backbone.weights": "random", "couplings.blocks": blocks}
    detector = build("sanflow", arguments)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    seconds = in_turns({"stream": stream(detector, [images] * 8, device, compiled)}, rounds, device)["stream"]
    rates = sorted(8 * batch / one.wall for one in seconds)
    middle = rates[len(rates) // 2]
    report.ratio(
        "cuda_images_per_s", {"median": round(middle, 1), "low": round(rates[0], 1), "high": round(rates[-1], 1)}
    )
    reason = missing("FrEIA")
    if reason:
        report.skip(reason, "cuda_infer", "cuda_train")
        return
    detector = build("sanflow", arguments).to(device)
    floats = torch.rand(batch, 3, size, size, device=device)
    masks = torch.zeros(batch, size, size, dtype=torch.bool, device=device)
    masks[1::2, : size // 2, : size // 2] = True
    maps = detector.features(floats)
    detector.prepare([(floats, maps)])
    optimizer = adam(detector, detector.provenance.training)
    scales = [Scale.make(setting, batch, Plan(blocks, rounds, device)) for setting in settings(backbone)]

    def infer() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=compiled):
            call(floats, maps)

    def train() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=compiled):
            train_on_batch(detector, optimizer, detector.provenance.training, floats, masks, maps)

    call = torch.compile(detector.log_probs, mode="reduce-overhead", dynamic=False) if compiled else detector.log_probs
    for name, ours in (("cuda_infer", infer), ("cuda_train", train)):
        theirs = {
            kind: [published(scale, kind == "whole maps", name == "cuda_train") for scale in scales]
            for kind in ("whole maps", "groups of 256")
        }
        sides = {
            "semflow": ours,
            **{kind: (lambda runs=runs: [run() for run in runs]) for kind, runs in theirs.items()},
        }
        seconds_of = in_turns(sides, rounds, device)
        peer = best(seconds_of, list(theirs), "wall")
        report.ratio(name, ratio(seconds_of, peer, "semflow", "wall") | {"peer": peer})
