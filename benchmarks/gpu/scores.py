"""Scores of every recipe on the device against those of the same detector on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from semflow.detectors import Detector
from semflow.recipes import RECIPES
from semflow.testing.case import perturb

from .plan import Plan

MODES = {"float32": 1e-3, "TF32": 0.05, "bfloat16": 0.5}
"""Modes, with the largest error of a score in standard deviations of the scores."""
SIZES: dict[str, dict[str, Any]] = {"padim": {"channels": 100}}
TINY: dict[str, dict[str, Any]] = {
    "cflow_ad": {"couplings.blocks": 1, "couplings.position_channels": 16},
    "fastflow": {"couplings.blocks": 1},
    "differnet": {"couplings.blocks": 1, "couplings.hidden": 16, "views": 4, "levels": 2},
    "cs_flow": {"couplings.blocks": 1, "couplings.hidden": 8, "levels": 2},
    "msflow": {"couplings.blocks": (1, 1, 1), "couplings.position_channels": 16},
    "padim": {"channels": 20},
    "memory_flow": {"couplings.blocks": 1, "couplings.position_channels": 16, "memory": 50},
}


def measure(plan: Plan) -> None:
    names = [name for name, make in RECIPES.items() if make.__module__.startswith("semflow.")]
    worst: dict[str, list[float]] = {mode: [] for mode in MODES}
    for name in names:
        plan.record.attempt(name, lambda name=name: _compare(plan, name, worst))
    for mode, errors in worst.items():
        if errors:
            equal = sum(error <= MODES[mode] for error in errors)
            plan.record.row(
                f"all recipes, {mode}", largest_score_error=max(errors), within_limit=f"{equal} of {len(names)}"
            )
    if len(worst["float32"]) == len(names):
        plan.record.figure("score_error", max(worst["float32"]))


def fitted(plan: Plan, name: str) -> tuple[Detector, Tensor]:
    """Return a detector on the CPU with perturbed weights, fitted and calibrated, and images to score."""
    settings: dict[str, Any] = {"backbone": "test_efficientnet" if plan.small else "resnet18"}
    made = plan.build(name, settings | (TINY if plan.small else SIZES).get(name, {})).eval()
    perturb(nn.ModuleList([made.flows, *([made.head] if made.head else [])]), 0.05, torch.Generator().manual_seed(0))
    normal = [plan.images(8, seed).float() / 255 for seed in (1, 2)]
    made.prepare(normal)
    made.fit_base(normal)
    made.fit_score(normal)
    made.calibrate([plan.images(19, 3).float() / 255], 0.1)
    given = plan.images(16, 4).float() / 255
    given[8:, :, : plan.size // 4, : plan.size // 4] = 1 - given[8:, :, : plan.size // 4, : plan.size // 4]
    return made, given


@contextmanager
def precision(mode: str) -> Iterator[None]:
    """Allow TF32 in matrix products and convolutions during the block, or forbid it."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if mode == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = mode != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def _compare(plan: Plan, name: str, worst: dict[str, list[float]]) -> None:
    made, given = fitted(plan, name)
    right = made.predict(given)
    made.to(plan.device)
    for mode in MODES:
        with precision(mode), torch.autocast(plan.device, torch.bfloat16, enabled=mode == "bfloat16"):
            found = made.predict(given.to(plan.device))
        scores, maps = found.score.float().cpu(), found.anomaly_map.float().cpu()
        error = ((scores - right.score).abs().max() / right.score.std().clamp(min=1e-6)).item()
        spread = (right.anomaly_map.amax() - right.anomaly_map.amin()).clamp(min=1e-6)
        decisions = (found.is_anomalous.cpu() != right.is_anomalous).sum().item()
        worst[mode].append(float(f"{error:.2g}"))
        plan.record.row(
            f"{name}, {mode}",
            score_error=float(f"{error:.2g}"),
            map_error=float(f"{((maps - right.anomaly_map).abs().max() / spread).item():.2g}"),
            other_decisions=int(decisions),
        )
