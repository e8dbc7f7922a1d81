"""Special functions and resizing in elementary operations, compared with scipy and torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special

from semflow.app.export.special import ElementaryFunctions
from semflow.functional import digamma_series, lgamma_series, normal_log_prob
from semflow.functional.inverse_gamma import lgamma_step

CASES = [(digamma_series, special.digamma), (lgamma_series, special.gammaln)]


@pytest.mark.parametrize(("ours", "truth"), CASES)
@given(log_x=st.floats(np.log(1e-8), np.log(1e4)))
def test_series_are_exact_over_the_range_of_the_variance_head(ours, truth, log_x) -> None:
    x = np.exp(log_x)
    got = ours(torch.tensor(x, dtype=torch.float64)).item()
    # Near the zeros of the functions, the error is relative to the size of the terms.
    assert abs(got - truth(x)) <= 2e-14 * max(abs(truth(x)), 40.0)


@pytest.mark.parametrize(("ours", "truth"), CASES)
def test_series_are_accurate_in_single_precision(ours, truth) -> None:
    """OpenVINO's CPU plugin has no float64."""
    x = np.exp(np.linspace(np.log(1e-8), np.log(1e4), 4001)).astype(np.float32)
    got = ours(torch.from_numpy(x)).numpy()
    want = truth(x.astype(np.float64))
    assert (np.abs(got - want) <= 1e-6 * np.maximum(np.abs(want), 40.0)).all()


def test_digamma_needs_the_recurrence() -> None:
    x = torch.ones((), dtype=torch.float64)
    assert abs(digamma_series(x).item() + np.euler_gamma) < 1e-14
    assert abs((torch.log(x) - 0.5 / x - 1 / 12 / x**2).item() + np.euler_gamma) > 5e-3


@pytest.mark.parametrize("form", ["exact", "marginal"])
def test_traced_density_has_no_special_functions(form) -> None:
    class Density(torch.nn.Module):
        def forward(self, z, alpha, beta):
            return normal_log_prob(z, alpha, beta, form=form), lgamma_step(alpha.double(), 3.5)

    def special_functions(program):
        return {str(node.target) for node in program.graph.nodes} & {"aten.digamma.default", "aten.lgamma.default"}

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 8, 3, 3, generator=generator)
    alpha, beta = (torch.rand(2, 1, 3, 3, generator=generator) * s + 0.1 for s in (100, 10))
    given = (z, alpha, beta)
    with torch.no_grad():
        assert special_functions(torch.export.export(Density(), given, strict=False))
        with ElementaryFunctions():
            program = torch.export.export(Density(), given, strict=False)
    assert not special_functions(program)
    for a, b in zip(program.module()(*given), Density()(*given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_methods_are_replaced_but_not_other_functions() -> None:
    x = torch.tensor([0.3, 7.0], dtype=torch.float64)
    with ElementaryFunctions():
        assert torch.equal(x.digamma(), digamma_series(x))
        assert torch.equal(x.lgamma(), lgamma_series(x))
        assert torch.equal(torch.lgamma(x), lgamma_series(x))
        assert torch.equal(torch.erf(x), x.erf())
    assert torch.equal(torch.erf(x), x.erf())


@example(old=(4, 4), new=(1, 1))
@example(old=(2, 1), new=(3, 1))
@given(old=st.tuples(st.integers(1, 40), st.integers(1, 40)), new=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_resizing_equals_torch(old, new) -> None:
    x = torch.rand(2, 3, *old, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if new[1] == 1:  # torch 2.13 on CPUs is wrong for width 1, but not for height 1
        expected = F.interpolate(x.mT, new[::-1], mode="bilinear", antialias=True).mT
    else:
        expected = F.interpolate(x, new, mode="bilinear", antialias=True)
    with ElementaryFunctions():
        found = F.interpolate(x, new, mode="bilinear", antialias=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for corners in (False, True):
        expected = F.interpolate(x[:, :1], new, mode="bilinear", align_corners=corners)
        with ElementaryFunctions():
            found = F.interpolate(x[:, :1], new, mode="bilinear", align_corners=corners)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_only_antialiased_bilinear_resizing_is_replaced() -> None:
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with ElementaryFunctions():
        for options in (
            {"size": (6, 6), "mode": "bilinear"},
            {"size": (6, 6), "mode": "bilinear", "align_corners": True},
            {"size": 5, "mode": "bilinear", "antialias": True},
            {"scale_factor": 0.5, "mode": "bilinear", "antialias": True},
            {"size": (5, 7), "mode": "bicubic", "antialias": True},
            {"size": (5, 7), "mode": "nearest"},
        ):
            inside = F.interpolate(x, **options)
            with torch._C.DisableTorchFunction():
                torch.testing.assert_close(inside, F.interpolate(x, **options), rtol=1e-6, atol=1e-6)
