"""Autocast to bfloat16 on a CPU: scores against float32, and the types of what is summed."""

import pytest
import torch
from torch import nn

from helpers.recipe_cases import ALL, WITH_AND_WITHOUT, images, small, stack
from semflow.detectors import Detector
from semflow.testing.case import perturb

TOLERANCES = {
    "sanflow": 0.012, "cflow_ad": 2e-4, "fastflow": 0.008, "differnet": 6e-5, "cs_flow": 2e-6, "msflow": 6e-4,
    "padim": 0.03, "patchcore": 0.004, "spade": 1e-4, "memory_flow": 0.03,
    "cflow_ad with statistics": 0.012, "fastflow with statistics": 0.015, "differnet with statistics": 0.006,
    "cs_flow with statistics": 0.01, "msflow with statistics": 0.03,
}  # fmt: skip
"""Largest differences of scores, in nats per dimension, or distances of padim, patchcore and spade: two to three times
those measured. A variance that is predicted in bfloat16, to 3 digits, moves all scores by up to 0.01 nats."""
CASES = [*((name, {}) for name in ALL), *((name, s) for name, s in WITH_AND_WITHOUT if s.get("statistics"))]


def detector(name: str, settings: dict) -> Detector:
    """Return a fitted detector with perturbed weights."""
    made, batch = small(name, settings), stack(images(9))
    generator = torch.Generator().manual_seed(0)
    perturb(nn.ModuleList([made.flows, *([made.head] if made.head else [])]), 0.05, generator)
    made.eval().fit_base([batch])
    made.fit_score([batch])
    return made


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_scores_are_near_those_of_float32_and_likelihoods_stay_float32(name: str, settings: dict) -> None:
    made, mixed = detector(name, settings), torch.cat([stack(images(6, 1)), 0.35 + 0.3 * stack(images(6, 2))])
    exact = made.predict(mixed)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough, latents = made.predict(mixed), made.encode(mixed)
        log_probs = made.latent_log_probs(latents, made.score_log_det)
        densities = [
            base.log_prob(x.z, x.statistics) for base, x in zip(made.bases, latents, strict=True) if base.is_density
        ]
        narrow = [x.dtype for x in made.features(mixed)]
    results = [*log_probs, *densities, *(x.log_det for x in latents), *rough.variance, rough.score, rough.anomaly_map]
    assert {x.dtype for x in results} == {torch.float32}
    assert narrow == [torch.bfloat16] * len(narrow) or name == "fastflow"  # whose layer norm is float32
    difference = (rough.score - exact.score).abs().max().item()
    assert 0 < difference < TOLERANCES[name + (" with statistics" if settings else "")]
    assert (rough.anomaly_map - exact.anomaly_map).abs().max() < max(0.1 * exact.anomaly_map.std(), 0.03)


@pytest.mark.parametrize(("name", "settings"), WITH_AND_WITHOUT)
def test_terms_of_the_loss_are_float32(name: str, settings: dict) -> None:
    made, given = small(name, settings).train(), stack(images(2))
    with torch.autocast("cpu", torch.bfloat16):
        terms = made.loss(given, torch.ones(2, 64, 64, dtype=torch.bool).triu())
    assert {x.dtype for x in terms} == {torch.float32}
