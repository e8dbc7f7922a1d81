"""One small detector in every available format, converted once per session."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from helpers.export_cases import PACKAGES, own_detector
from semflow.app.export import saving
from semflow.app.export.runtime import SUFFIXES


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """Export a detector in training mode to each format, and check that it does not change."""
    folder, detector, made = tmp_path_factory.mktemp("exported"), own_detector().train(), {}
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    gradients = [p.requires_grad for p in detector.parameters()]
    traced, trace = {}, saving.trace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "trace", lambda graph: traced.setdefault("program", None) or _keep(traced, trace(graph)))
        for name, suffix in SUFFIXES.items():
            if all(find_spec(package) for package in PACKAGES[name]):
                made[name] = saving.save(detector, folder / f"own{suffix}").path
    assert detector.training
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())
    assert [p.requires_grad for p in detector.parameters()] == gradients
    return made


def _keep(traced, program):
    traced["program"] = program
    return program
