"""A small base that is fitted in one pass and can leave out each of its images, and a detector with one per scale."""

import math

import torch
from torch import Tensor

from helpers.small_detector import SIZE, Pyramid
from semflow.bases import FittedBase
from semflow.detectors import Detector, Provenance, Scorer
from semflow.errors import CheckpointError
from semflow.features import FrozenFeatures
from semflow.flows import AffineCoupling, FlowSequence, OptionalFlow, Standardize
from semflow.objectives import Objective
from semflow.training import TrainingConfig


class Sums:
    """Count, sum and sum of squares of each image's latents."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def update(self, z: Tensor) -> None:
        z = z.double().flatten(2)
        self.rows.append(torch.cat([torch.full_like(z[:, :1, 0], z.shape[2]), z.sum(2), z.square().sum(2)], 1))

    def merge(self, other: "Sums") -> None:
        self.rows += other.rows


class DiagonalNormal(FittedBase):
    """Normal with the mean and the variance of each channel over all locations of all images."""

    rows: Tensor

    def __init__(self, prior=None) -> None:
        super().__init__(prior)
        self.register_buffer("rows", torch.zeros(0, 0, dtype=torch.float64))

    def accumulator(self) -> Sums:
        return Sums()

    def fit(self, accumulator: Sums) -> None:
        self.rows = torch.cat(accumulator.rows)

    def check_state(self, state) -> None:
        if state["rows"].dim() != 2:
            raise CheckpointError(f"rows must be (M, 1 + 2C), but got {tuple(state['rows'].shape)}; fit again")

    def log_prob(self, z, statistics=None, anomaly_mask=None):
        return self._log_prob(z, self.rows.sum(0, keepdim=True))

    def normality(self, z, statistics=None, leave_out=None):
        total = self.rows.sum(0, keepdim=True)
        return self._log_prob(z, total if leave_out is None else total - self.rows[leave_out]) / z.shape[1]

    def _log_prob(self, z: Tensor, total: Tensor) -> Tensor:
        """Compute log p for totals (1 or B, 1 + 2C)."""
        count, sums, squares = total.split([1, z.shape[1], z.shape[1]], 1)
        mean = sums / count
        mean, variance = mean[..., None, None], (squares / count - mean.square())[..., None, None]
        return -0.5 * ((z - mean).square() / variance + torch.log(2 * math.pi * variance)).sum(1).to(z.dtype)


def make_fitted(
    seed: int = 0, trained: bool = False, synthesis=None, score_log_det: bool = True, optional: bool = False
) -> Detector:
    """Build a detector whose flows have parameters only if it is to be trained, and may be optional."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = FrozenFeatures(Pyramid(), channels=(6, 8), strides=(4, 8))
        flows = [FlowSequence([Standardize(c), *([AffineCoupling(c)] if trained else [])]) for c in (6, 8)]
        flows = [OptionalFlow(flow) for flow in flows] if optional else flows
        bases = [DiagonalNormal(), DiagonalNormal()]
        detector = Detector(
            features, flows, bases, objective=Objective(bce=0.0), scorer=Scorer(2), score_log_det=score_log_det
        )
    config = TrainingConfig(epochs=2 if trained else 0, batch_size=4, learning_rate=1e-2)
    arguments = {"seed": seed, "trained": trained}
    detector.provenance = Provenance("fitted", __name__, arguments, SIZE, training=config, synthesis=synthesis)
    return detector
