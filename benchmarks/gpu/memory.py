"""PatchCore on a WRN-50: its fit, the coreset and the search, with the largest memory of the device."""

import statistics
import time

import torch
from torch import Tensor

from semflow.functional import k_center, nearest, to_locations

from ..speed.timing import missing
from .modes import timed
from .plan import Plan

IMAGES = 320  # with 1024 locations each: 327,680 vectors of 1,536 channels
SHARE = 0.1


def measure(plan: Plan) -> None:
    detector = plan.build("patchcore", {"coreset": SHARE}).to(plan.device).eval()
    count = 6 if plan.small else IMAGES
    batches = [plan.images(min(32, count - k), k) for k in range(0, count, 32)]
    floats = [batch.to(plan.device).float() / 255 for batch in batches]

    def vectors() -> Tensor:
        with torch.no_grad():
            return torch.cat([to_locations(detector.encode(batch)[0].z) for batch in floats])

    def fit() -> None:
        plan.reset_peak()
        began = time.perf_counter()
        detector.fit_base(floats)
        plan.wait()
        seconds = time.perf_counter() - began
        stored = len(detector.bases[0].vectors)
        plan.record.row("fit", seconds=round(seconds, 2), images=count, stored=stored, peak_gib=plan.peak())

    x = plan.record.attempt("features", vectors)
    if x is not None:
        plan.record.attempt("coreset", lambda: _coreset(plan, x))
        plan.record.attempt("search", lambda: _search(plan, x))
        plan.record.attempt("direct selection", lambda: _direct(plan, x))
        del x
    if plan.record.attempt("fit", lambda: [fit()], least=15.0):
        detector.fit_score(floats[:1])

        def score(images: Tensor) -> Tensor:
            return detector(images.float() / 255).score

        plan.record.attempt(
            "prediction",
            lambda: plan.record.row(f"prediction, batch {len(batches[0])}", **timed(plan, score, batches[:2])),
        )


def _coreset(plan: Plan, x: Tensor) -> None:
    plan.reset_peak()
    k_center(x[:2000], 200)  # loads what the first call loads
    plan.wait()
    began = time.perf_counter()
    found = k_center(x, SHARE, start=0)
    plan.wait()
    seconds = time.perf_counter() - began
    plan.record.row(
        "coreset", seconds=round(seconds, 2), vectors=len(x), channels=x.shape[1], selected=len(found.indices),
        radius=found.radius, peak_gib=plan.peak(),
    )  # fmt: skip
    plan.record.figure("coreset_s", seconds)


def _search(plan: Plan, x: Tensor) -> None:
    memory = x[:: round(1 / SHARE)].contiguous()
    queries = x[: min(len(x), 32 * 1024)]
    seconds = []
    plan.reset_peak()
    for _ in range(2 if plan.small else 5):
        plan.wait()
        began = time.perf_counter()
        nearest(queries, memory)
        plan.wait()
        seconds.append(time.perf_counter() - began)
    plan.record.row(
        "search",
        queries=len(queries),
        vectors=len(memory),
        seconds=round(statistics.median(seconds), 4),
        peak_gib=plan.peak(),
    )


def _direct(plan: Plan, x: Tensor) -> None:
    """Time some selections of anomalib's sampler; the time of one does not depend on how many there were."""
    reason = missing("anomalib")
    if reason:
        plan.record.skip("anomalib's selection", reason)
        return
    from ..speed.coreset import Direct

    direct, count = Direct(x, 0), 5 if plan.small else 200
    direct.select(5)
    plan.wait()
    began = time.perf_counter()
    direct.select(count)
    plan.wait()
    each = (time.perf_counter() - began) / count
    plan.record.row(
        "anomalib's selection",
        seconds_each=float(f"{each:.3g}"),
        all_extrapolated_s=round(each * int(len(x) * SHARE), 1),
    )
