"""Ways to run the scoring of a detector on a device, and how long they take."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from semflow.detectors import Detector

from .plan import Plan

Score = Callable[[Tensor], Tensor]
"""Computes scores (B,) of uint8 images (B, 3, H, W); both are on the device."""

CALLS = 3  # before a graph is captured, so that libraries have chosen kernels and allocated what they keep


def scoring(plan: Plan, detector: Detector, bf16: bool) -> Score:
    """Return the scoring of a detector in eval mode, eager."""

    def score(images: Tensor) -> Tensor:
        # Weights are cast in every call: a cache of casts must not outlive the graph that made them.
        with torch.autocast(plan.device, torch.bfloat16, enabled=bf16, cache_enabled=False):
            log_probs = detector.log_probs(images.float() / 255)[0]
        return detector.scorer([x.float() for x in log_probs], (images.shape[2], images.shape[3]))[1]

    return score


def compiled(plan: Plan, score: Score) -> Score:
    """Return a compiled scoring; a rehearsal traces it, which needs no compiler."""
    made: Any = torch.compile(score, dynamic=False, backend="inductor" if plan.cuda else "aot_eager")
    return made  # type: ignore[no-any-return]


def captured(plan: Plan, score: Score, example: Tensor) -> Score:
    """Return a scoring that replays a CUDA graph, for images of the shape of `example`.

    Memory of the graph is used again in every replay, so images are copied in and scores copied out. In a rehearsal,
    which has no graphs, only the copies are made.
    """
    static = example.to(plan.device).clone()
    if not plan.cuda:
        return lambda images: score(static.copy_(images)).clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(CALLS):
            score(static)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = score(static)

    def replay(images: Tensor) -> Tensor:
        static.copy_(images, non_blocking=True)
        graph.replay()
        return out.clone()

    return replay


def from_host(plan: Plan, score: Score, batches: Sequence[Tensor]) -> Callable[[], Tensor]:
    """Return the scoring of batches in host memory, copied while the previous one is computed, to scores there."""

    def run() -> Tensor:
        with torch.no_grad():
            return torch.cat([score(batch.to(plan.device, non_blocking=True)) for batch in batches]).cpu()

    return run


def timed(plan: Plan, score: Score, batches: Sequence[Tensor]) -> dict[str, float]:
    """Measure images per second of a stream of batches, and milliseconds from one batch to its scores.

    The figures are medians, and of the latencies also the 95th percentile.
    """
    least = 0.0 if plan.small else 0.5
    stream, one = from_host(plan, score, batches), from_host(plan, score, batches[:1])
    images = sum(len(batch) for batch in batches)
    for run in (one, stream):
        run()
    rates, latencies = [], []
    for times, run, fewest in ((rates, stream, 3), (latencies, one, 5 if plan.small else 30)):
        began = time.perf_counter()
        while len(times) < fewest or time.perf_counter() - began < least:
            plan.wait()
            start = time.perf_counter()
            run()  # ends with a copy to the host, which waits for the device
            times.append(time.perf_counter() - start)
            if time.perf_counter() - began > 5:
                break
    ordered = sorted(latencies)
    return {
        "images_per_s": round(images / statistics.median(rates), 1),
        "latency_ms": round(1e3 * statistics.median(latencies), 3),
        "latency_p95_ms": round(1e3 * ordered[int(0.95 * (len(ordered) - 1))], 3),
    }
