"""BGAD's boundary loss against a loop in float64, its gradients, and extreme inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.objectives import boundary_loss


def slow_loss(
    log_prob: list[float], anomalous: list[bool], ignore: list[bool], quantile: float, margin: float, scale: float
) -> tuple[float, list[float]]:
    """The published procedure, one location at a time, and its gradient with the boundary as a constant."""
    x = [value / scale for value in log_prob]
    normal = [k for k in range(len(x)) if not anomalous[k] and not ignore[k]]
    gradient = [0.0] * len(x)
    if not normal:
        return 0.0, gradient
    b = sorted(x[k] for k in normal)[min(int(len(normal) * quantile), len(normal) - 1)]
    below = [k for k in normal if x[k] < b]
    above = [k for k in range(len(x)) if anomalous[k] and not ignore[k] and x[k] > b - margin]
    total = sum(b - x[k] for k in below) / max(len(below), 1) + sum(x[k] - b + margin for k in above) / max(len(above), 1)
    for k in below:
        gradient[k] = -1 / scale / len(below)
    for k in above:
        gradient[k] = 1 / scale / len(above)
    return total, gradient


@given(
    st.lists(
        st.tuples(st.floats(-100, 50).map(lambda x: round(x, 1)), st.booleans(), st.integers(0, 9)),
        min_size=1, max_size=60,
    ),
    st.sampled_from([0.05, 0.0, 0.3, 0.99]), st.sampled_from([0.1, 0.0, 1.0]), st.sampled_from([10.0, 1.0]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_loss_and_gradient_equal_a_loop(
    rows: list[tuple[float, bool, int]], quantile: float, margin: float, scale: float
) -> None:
    """Rounded values make ties."""
    values, anomalous, ignored = (list(column) for column in zip(*rows, strict=True))
    ignore = [k == 0 for k in ignored]
    log_prob = torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1).requires_grad_()
    mask, left = (torch.tensor(column).reshape(1, 1, -1) for column in (anomalous, ignore))
    loss = boundary_loss(log_prob, mask, left, quantile, margin, scale)
    loss.backward()
    expected, gradient = slow_loss(values, anomalous, ignore, quantile, margin, scale)
    assert loss.item() == pytest.approx(expected, abs=1e-10)
    assert log_prob.grad is not None
    torch.testing.assert_close(log_prob.grad.flatten(), torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=1e-10)
    single = boundary_loss(log_prob.detach().float(), mask, left, quantile, margin, scale)
    assert single.item() == pytest.approx(expected, rel=1e-5, abs=1e-5 * (1 + abs(expected)))


def test_nothing_to_compare() -> None:
    x = torch.linspace(-20, 0, 8).requires_grad_()
    for mask, ignore in (
        (torch.ones(8), None), (torch.zeros(8), torch.ones(8)), (torch.arange(8) < 4, torch.arange(8) >= 4),
    ):  # fmt: skip
        loss = boundary_loss(x, mask, ignore)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, x)
        assert torch.equal(gradient, torch.zeros(8))


def test_infinite_densities() -> None:
    """One normal location of density 0 costs infinitely much; an anomalous one costs nothing."""
    x = torch.linspace(-20.0, 0.0, 40)
    mask = torch.arange(40) % 4 == 3
    finite = boundary_loss(x, mask)
    assert math.isfinite(finite)
    lowest = x.clone()
    lowest[3] = -math.inf
    assert math.isfinite(boundary_loss(lowest, mask))
    lowest[0] = -math.inf
    assert boundary_loss(lowest, mask) == math.inf
