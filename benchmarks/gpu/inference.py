"""Images in host memory to scores: SANFlow in every mode, the published formulation and anomalib's models."""

from collections.abc import Callable

import torch
from torch import Tensor

from semflow.detectors import Detector

from ..speed.timing import in_turns, missing, ratio
from .modes import Score, captured, compiled, from_host, scoring, timed
from .plan import Plan
from .published import GROUP, pair, scoring_in_groups

STREAM = 8  # batches


def measure(plan: Plan) -> None:
    reason = missing("FrEIA")
    if reason:
        plan.record.skip("the published formulation", reason)
        detector, published = plan.build("sanflow").to(plan.device).eval(), None
    else:
        detector, published = pair(plan)
    best: dict[str, tuple[float, Score]] = {}  # of the first batch size, which the targets are for
    with torch.no_grad():
        for batch in plan.batches:
            _measure_batch(plan, detector, published, batch, best if batch == plan.batches[0] else {})
        _against(plan, best, "without compiling")
    anomalib(plan)
    with torch.no_grad():  # compiling takes minutes, so it comes last, for the sizes that there is time for
        for batch in plan.batches:
            _measure_compiled(plan, detector, batch, best if batch == plan.batches[0] else {})
            if batch == plan.batches[0]:
                _against(plan, best, "compiled too")


def _batches(plan: Plan, batch: int) -> list[Tensor]:
    return [plan.images(batch, seed) for seed in range(2 if plan.small else STREAM)]


class _Modes:
    """Modes at one batch size; each is compared with the first before it is timed."""

    def __init__(self, plan: Plan, batch: int, best: dict[str, tuple[float, Score]]) -> None:
        self.plan, self.batch, self.best = plan, batch, best
        self.batches = _batches(plan, batch)
        self.reference: Tensor | None = None

    def time(self, name: str, make: Callable[[], Score], side: str = "semflow", least: float = 5.0) -> Score | None:
        """Measure a mode of one side, and keep it if it is the fastest of its side."""

        def one() -> Score:
            self.plan.reset_peak()
            score, batches = make(), self.batches if side == "semflow" else self.batches[:2]  # half a second each
            scores = from_host(self.plan, score, batches)()
            if self.reference is None:
                self.reference = scores
            # In standard deviations of the scores, which a wrong input or a stale buffer exceeds.
            off = (scores - self.reference[: len(scores)]).abs().max()
            error = float(off / self.reference.std().clamp(min=1e-6))
            found = timed(self.plan, score, batches)
            self.plan.record.row(
                f"{name}, batch {self.batch}", **found, score_error=float(f"{error:.2g}"), peak_gib=self.plan.peak()
            )
            if side == "semflow" and self.batch == self.plan.batches[0]:
                rates = [found["images_per_s"], self.plan.record.content["figures"].get("images_per_s", 0.0)]
                self.plan.record.figure("images_per_s", max(rates))
            if found["images_per_s"] > self.best.get(side, (0.0, score))[0]:
                self.best[side] = found["images_per_s"], score
            return score

        return self.plan.record.attempt(f"{name}, batch {self.batch}", one, least)


def _measure_batch(
    plan: Plan, detector: Detector, published: Detector | None, batch: int, best: dict[str, tuple[float, Score]]
) -> None:
    modes = _Modes(plan, batch, best)
    for bf16 in (False, True):
        kind, score = "bfloat16" if bf16 else "float32", scoring(plan, detector, bf16)
        modes.time(f"semflow, eager, {kind}", lambda score=score: score)
        modes.time(f"semflow, graph, {kind}", lambda score=score: captured(plan, score, modes.batches[1]))
    if published is not None:
        for name, group, bf16 in (
            (f"published, groups of {GROUP}, float32", GROUP, False),
            ("published, whole maps, float32", None, False),
            ("published, whole maps, bfloat16", None, True),
        ):
            side = "published" if group else "published, whole maps"
            modes.time(name, lambda g=group, bf16=bf16: scoring_in_groups(plan, published, g, bf16), side)


def _measure_compiled(plan: Plan, detector: Detector, batch: int, best: dict[str, tuple[float, Score]]) -> None:
    modes = _Modes(plan, batch, best)
    eager = scoring(plan, detector, bf16=True)
    modes.reference = from_host(plan, scoring(plan, detector, bf16=False), modes.batches)()
    least = 0.0 if plan.small else 40.0
    made = modes.time("semflow, compiled, bfloat16", lambda: compiled(plan, eager), least=least)
    if made is not None:
        modes.time("semflow, compiled and graph, bfloat16", lambda: captured(plan, made, modes.batches[1]))


def _against(plan: Plan, best: dict[str, tuple[float, Score]], which: str) -> None:
    """Compare the fastest mode of each side in turns."""
    if "semflow" not in best or "published" not in best:
        return

    def compare() -> None:
        batch = plan.batches[0]
        batches = _batches(plan, batch)[:2]
        runs = {side: from_host(plan, score, batches) for side, (_, score) in best.items()}
        seconds = in_turns(runs, 2 if plan.small else 5, plan.device)
        for side in sorted(set(runs) - {"semflow"}):
            found = ratio(seconds, side, "semflow", "wall")
            plan.record.row(f"time of {side} over the fastest mode of semflow, batch {batch}, {which}", **found)
        plan.record.figure("inference_ratio", float(ratio(seconds, "published", "semflow", "wall")["median"]))

    plan.record.attempt(f"comparison with the published formulation, {which}", compare)


def anomalib(plan: Plan) -> None:
    """Time anomalib's FastFlow and CFLOW-AD and ours with the same weights, in float32, from images on the device."""
    reason = missing("anomalib", "FrEIA")
    if reason:
        plan.record.skip("anomalib's models", reason)
        return
    from ..speed.against_anomalib import cflow_pair, fastflow_pair, images_of, predict

    backbone, blocks = ("resnet18", 1) if plan.small else ("wide_resnet50_2", 8)
    for name, make in (("fastflow", fastflow_pair), ("cflow_ad", cflow_pair)):

        def compare(name: str = name, make: Callable[..., tuple[Detector, torch.nn.Module]] = make) -> None:
            ours, theirs = make(backbone, blocks)
            images, normalized = (x.to(plan.device) for x in images_of(ours, plan.batches[0]))
            ours, theirs = ours.to(plan.device), theirs.to(plan.device)
            with torch.inference_mode():
                runs = {"anomalib": lambda: theirs(normalized), "semflow": lambda: predict(ours, images)}
                seconds = in_turns(runs, 3, plan.device)
            found = ratio(seconds, "anomalib", "semflow", "wall")
            plan.record.row(f"time of anomalib's {name} over ours, batch {plan.batches[0]}", **found)

        plan.record.attempt(f"anomalib's {name}", compare, least=20.0)
