"""Layers draw their parameters from torch's global generator: a fork of it, seeded, makes a failure come again."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_parameters() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
