"""Profiles of scoring and of a training step: the kernels that take the time, and the gaps between them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .modes import captured, from_host, scoring
from .plan import Plan
from .training import step

ROWS, RUNS = 15, 3


def measure(plan: Plan) -> None:
    batch = plan.batches[0]
    detector = plan.build("sanflow").to(plan.device).eval()
    batches = [plan.images(batch, seed) for seed in range(2)]
    low = "bf16" if plan.cuda else "float32"

    def scores(graph: bool) -> Callable[[], object]:
        with torch.no_grad():
            score = scoring(plan, detector, bf16=True)
            return from_host(plan, captured(plan, score, batches[0]) if graph else score, batches)

    cases: dict[str, Callable[[], Callable[[], object]]] = {
        f"scoring, eager, bfloat16, batch {batch}": lambda: scores(False),
        f"training step, bfloat16, batch {batch}": lambda: step(plan, plan.build("sanflow"), batch, low),
        f"scoring, graph, bfloat16, batch {batch}": lambda: scores(True),
        "training step, bfloat16, batch 4": lambda: step(plan, plan.build("sanflow"), 4, low),
    }
    for name, make in cases.items():
        plan.record.attempt(name, lambda name=name, make=make: _profiled(plan, name, make()))


def _profiled(plan: Plan, name: str, run: Callable[[], object]) -> None:
    for _ in range(RUNS):
        run()
    plan.wait()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if plan.cuda else [])]
    with profile(activities=activities) as found:
        for _ in range(RUNS):
            run()
        plan.wait()
    kind = DeviceType.CUDA if plan.cuda else DeviceType.CPU
    spans = [(e.time_range.start, e.time_range.end, e.name) for e in found.events() if e.device_type == kind]
    busy, whole, gaps = occupied(spans)
    order = "self_device_time_total" if plan.cuda else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=70)
    plan.record.row(
        name,
        kernels_per_run=len(spans) // RUNS,
        ms_per_run=round(whole / RUNS / 1e3, 2),
        busy=round(busy / max(whole, 1e-9), 3),
    )
    lines = [f"{length:10.1f} us  after {before[:90]}" for length, before in gaps]
    plan.record.text(name, f"{table}\nlongest gaps\n" + "\n".join(lines))


def occupied(spans: Sequence[tuple[float, float, Any]], most: int = 10) -> tuple[float, float, list[tuple[float, Any]]]:
    """Return the time that spans (start, end, name) cover, that from first to last, and the longest gaps.

    A gap comes with the name of the span before it.

    >>> occupied([(0, 2, "a"), (1, 4, "b"), (7, 8, "c")])
    (5, 8, [(3, 'b')])
    """
    if not spans:
        return 0, 0, []
    ordered = sorted(spans, key=lambda span: span[0])
    end, last = ordered[0][:1] + ordered[0][2:]
    busy, gaps = type(end)(0), []
    for start, stop, name in ordered:
        if start > end:
            gaps.append((start - end, last))
        busy += max(0, stop - max(start, end))
        if stop >= end:
            end, last = stop, name
    return busy, end - ordered[0][0], sorted(gaps, key=lambda gap: -gap[0])[:most]
