"""Scoring of two halves of a batch at a time."""

import os
import subprocess
import sys

import pytest
import torch

from helpers.recipe_cases import ALL, images, small, stack
from semflow.app.cli.halves import WAITS, in_halves

ENVIRONMENT = """
import os
from semflow.app.cli.halves import shorten_waits
shorten_waits()
print([os.environ.get(name) for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")])
import torch
"""


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ALL)
def test_halves_have_the_prediction_of_the_whole(name: str) -> None:
    detector = small(name)
    detector.calibration.fit(torch.arange(20.0), torch.arange(20.0), 0.1)
    detector.prepare([stack(images(4))])
    detector.fit_base([stack(images(4))])
    batch = stack(images(5, seed=1))
    halves = in_halves(detector)
    assert halves is not detector
    for count in (1, 2, 5):
        whole, found = detector.predict(batch[:count]), halves.predict(batch[:count])
        for a, b in zip(whole, found, strict=True):
            for x, y in zip(a if isinstance(a, tuple) else [a], b if isinstance(b, tuple) else [b], strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="images must"):
        halves.predict(torch.rand(4, 1, 8, 8))


def test_one_thread_is_not_made_two(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small("padim")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert in_halves(detector) is detector
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert in_halves(detector) is detector


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, list(WAITS.values())),
        ({"GOMP_SPINCOUNT": "7"}, ["7", WAITS["KMP_BLOCKTIME"]]),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, [None, None]),
    ],
)
def test_waits_are_short_unless_the_user_has_set_them(given: dict[str, str], expected: list[str | None]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", ENVIRONMENT], env={**kept, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)
