"""Growth of rounding errors: the experiment, and its committed table."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import chaos

from helpers.small_detector import make_detector, make_images
from semflow.data import collate

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(("start", "apart"), [(0.0, False), (1e-7, True)])
def test_only_different_starts_come_apart(start, apart) -> None:
    images = make_images(8)
    steps = [chaos.Step(make_detector(), collate(images[k : k + 4])) for k in (0, 4)] * 4
    tested = torch.stack([image.image for image in images])
    found = chaos.measure(make_detector, chaos.Variant(start=start), steps, 2, tested)
    assert len(found["distance"]) == 9
    assert (found["distance"][-1] > 0) == (found["gradient_h"] > 0) == apart
    assert found["loss"][-1] < found["loss"][0]


def test_committed_table_is_made_from_the_committed_figures() -> None:
    found = json.loads((RESULTS / "chaos.json").read_text("utf-8"))
    assert chaos.table(found["variants"]) in (RESULTS / "README.md").read_text("utf-8")
