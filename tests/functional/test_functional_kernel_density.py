"""Kernel density estimates against brute force in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.kernel_truths import Largest, kernel_density
from semflow.errors import ConfigError, ShapeError
from semflow.functional import kernel_log_prob, likeliest_bandwidth

FORMS = ("exact", "marginal", "mode")


def draw(seed, *shape, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


@given(
    st.sampled_from([1, 2, 7, 64, 2048]),
    st.sampled_from([1, 2, 3, 50]),
    st.floats(-6, 3),
    st.sampled_from([None, *FORMS]),
    st.sampled_from([64, 5000, 2**26]),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_equals_kernel_density(channels, count, log_beta, form, chunk_bytes, seed):
    memory = draw(seed, count, channels)
    memory[count // 2 :: 3] = memory[0].clone()  # duplicates
    z = draw(seed + 1, 2, 5, channels)
    z[0, 0], z[1, 2] = memory[0], memory[-1] + 1e-7  # at and next to stored vectors
    beta = (log_beta + draw(seed + 2, 2, 5)).exp()
    alpha = None if form is None else draw(seed + 3, 2, 5).exp() * 3
    given = (beta, alpha, form or "exact")
    got = kernel_log_prob(z, memory, *given, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(got, kernel_density(z, memory, *given), rtol=1e-9, atol=1e-9)
    z, memory = z.float(), memory.float()
    got = kernel_log_prob(z, memory, *given, chunk_bytes=chunk_bytes).double()
    torch.testing.assert_close(got, kernel_density(z, memory, *given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_from_the_origin_nothing_cancels(dtype):
    memory, z = 300 + draw(0, 40, 16).to(dtype), 300 + draw(1, 1, 9, 16).to(dtype)
    z[0, 0] = memory[0]
    got = kernel_log_prob(z, memory, torch.tensor(1e-3))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), kernel_density(z, memory, torch.tensor(1e-3)), rtol=1e-5, atol=1e-5)


def test_autocast_does_not_change_the_result():
    memory, z = draw(0, 40, 16, dtype=torch.float32), draw(1, 2, 9, 16, dtype=torch.float32)
    expected = kernel_log_prob(z, memory, torch.tensor(0.1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernel_log_prob(z, memory, torch.tensor(0.1)), expected)


@given(st.integers(0, 2**32), st.sampled_from([None, *FORMS]), st.sampled_from([64, 2**26]))
@settings(max_examples=20)
def test_excluded_vectors_are_left_out(seed, form, chunk_bytes):
    memory, z, ids = draw(seed, 30, 3), draw(seed + 1, 2, 4, 3), torch.arange(30) // 7
    exclude = torch.tensor([[0], [4]])
    beta, alpha = torch.tensor(0.3), None if form is None else torch.tensor(2.5)
    given = (beta, alpha, form or "exact")
    got = kernel_log_prob(z, memory, *given, exclude=exclude, memory_ids=ids, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(got, kernel_density(z, memory, *given, exclude, ids), rtol=1e-10, atol=1e-10)
    own = kernel_log_prob(memory[None], memory, beta, exclude=torch.arange(30)[None], chunk_bytes=chunk_bytes)
    expected = kernel_density(memory[None], memory, beta, exclude=torch.arange(30)[None], ids=torch.arange(30))
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


def test_a_map_does_not_depend_on_the_others_of_its_batch():
    memory, z = draw(0, 500, 24, dtype=torch.float32), draw(1, 5, 70, 24, dtype=torch.float32)
    together = kernel_log_prob(z, memory, torch.tensor(0.1))
    assert torch.equal(torch.cat([kernel_log_prob(x[None], memory, torch.tensor(0.1)) for x in z]), together)
    assert kernel_log_prob(z[:0], memory, torch.tensor(0.1)).shape == (0, 70)
    assert kernel_log_prob(z[:, :0], memory, torch.tensor(0.1)).shape == (5, 0)


def test_many_rows_are_computed_in_parts():
    memory, z = draw(0, 11, 2), draw(1, 2, 2500, 2)
    torch.testing.assert_close(
        kernel_log_prob(z, memory, torch.tensor(0.1)),
        kernel_density(z, memory, torch.tensor(0.1)),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("form", [None, *FORMS])
def test_gradients_are_those_of_the_value(form):
    memory, z = draw(0, 6, 3), draw(1, 2, 2, 3).requires_grad_()
    beta = draw(2, 2, 2).exp().requires_grad_()
    alpha = None if form is None else draw(3, 2, 2).exp().requires_grad_()
    ids, exclude = torch.arange(6) // 2, torch.tensor([[0], [2]])

    def function(z, beta, alpha=None):
        chosen = {"exclude": exclude, "memory_ids": ids, "chunk_bytes": 200}
        return kernel_log_prob(z, memory, beta, alpha, form or "exact", **chosen)

    inputs = (z, beta) if alpha is None else (z, beta, alpha)
    assert torch.autograd.gradcheck(function, inputs)
    if form is None:
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("learns", [False, True])
def test_temporary_memory_is_bounded_by_the_argument(learns):
    memory, z = draw(0, 12000, 4, dtype=torch.float32), draw(1, 2, 150, 4, dtype=torch.float32).requires_grad_(learns)
    beta, found = torch.tensor(0.1), {}
    for chunk_bytes in (2**20, 2**22, 2**30):
        with Largest() as largest:
            log_prob = kernel_log_prob(z, memory, beta, chunk_bytes=chunk_bytes)
            if learns:
                log_prob.sum().backward()
        found[chunk_bytes] = largest.bytes
    own = memory.numel() * 8  # the mean of the memory is taken in float64
    assert found[2**20] <= max(own, 2**20)
    assert found[2**22] <= 2**22
    assert found[2**30] == 150 * 12000 * 8


def test_a_million_vectors():
    memory = draw(0, 10**6, 2, dtype=torch.float32)
    z = torch.cat([memory[:3][None], draw(1, 1, 5, 2, dtype=torch.float32)], 1)
    got = kernel_log_prob(z, memory, torch.tensor(0.01), chunk_bytes=2**24).double()
    torch.testing.assert_close(got, kernel_density(z, memory, torch.tensor(0.01)), rtol=1e-5, atol=1e-5)


def test_invalid_arguments_are_rejected():
    z, memory = torch.zeros(1, 2, 3), torch.zeros(4, 3)
    with pytest.raises(
        ConfigError, match="form must be exact, marginal or mode around stored vectors, but got 'paper'"
    ):
        kernel_log_prob(z, memory, torch.tensor(1.0), form="paper")
    with pytest.raises(ShapeError, match=r"memory must be \(M, C\) with at least one vector, but got \(0, 3\)"):
        kernel_log_prob(z, memory[:0], torch.tensor(1.0))
    with pytest.raises(ShapeError, match=r"z must be \(B, n, 3\), but got \(1, 2, 2\)"):
        kernel_log_prob(z[..., :2], memory, torch.tensor(1.0))


# Bandwidth


def leave_one_out(memory, ids, rows, h):
    exclude = ids[rows][None]
    return kernel_density(memory[rows][None], memory, torch.tensor(h * h), exclude=exclude, ids=ids).mean().item()


@pytest.mark.parametrize("channels", [1, 3, 40])
@pytest.mark.parametrize("kind", ["normal", "clusters", "duplicates"])
def test_bandwidth_is_as_likely_as_the_best_of_a_dense_grid(channels, kind):
    memory = draw(channels, 120, channels)
    if kind == "clusters":
        memory[::2] = 20 + 0.01 * memory[::2]
    elif kind == "duplicates":
        memory[:40] = memory[80:]
    ids, rows = torch.arange(120) // 4, torch.arange(0, 120, 2)
    h = likeliest_bandwidth(memory, ids, rows, 1e-3, chunk_bytes=2**16)
    assert h == pytest.approx(likeliest_bandwidth(memory, ids, rows, 1e-3), rel=1e-9)
    grid = [math.exp(x) for x in np.linspace(math.log(1e-3), math.log(100), 2000)]
    best = max(leave_one_out(memory, ids, rows, x) for x in grid)
    assert leave_one_out(memory, ids, rows, h) >= best - 1e-3 * channels


def test_bandwidth_of_identical_vectors_is_the_shortest():
    memory = torch.ones(6, 3)
    assert likeliest_bandwidth(memory, torch.arange(6), torch.arange(6), 0.02) == pytest.approx(0.02)
