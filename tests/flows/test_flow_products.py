"""The products and the clamp that fused blocks take, against float64 and against what they stand for."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.flow_cases import generator
from semflow.flows.kernels import products
from semflow.flows.kernels.products import packed, product
from semflow.flows.steps import CouplingForm
from semflow.functional import soft_clamp

sizes = st.integers(1, 40)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(sum(shape)))


def close(came: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Within the bound of a sum of float32 products, of any order."""
    x, weight = x.double(), weight.double()
    right = F.linear(x, weight, None if bias is None else bias.double())
    bound = (weight.shape[1] + 2) * 2**-23 * (F.linear(x.abs(), weight.abs()) + (0 if bias is None else bias.abs()))
    return came.shape == right.shape and came.dtype == torch.float32 and bool(((came - right).abs() <= bound).all())


@given(sizes, sizes, sizes, st.booleans(), st.booleans())
def test_a_product_is_linear_whatever_lies_in_memory_how(
    rows: int, inputs: int, outputs: int, with_bias: bool, in_order: bool
) -> None:
    """Rows of a wider matrix, a transposed weight, a packed one, columns of a wider one."""
    bias = drawn(outputs) if with_bias else None
    x = drawn(rows, inputs + 3)[:, 1 : inputs + 1] if in_order else drawn(inputs, rows).T
    weight = drawn(outputs, inputs)
    for given_weight in (weight, weight.T.contiguous().T, packed(weight, rows), packed(weight, rows + 5)):
        assert close(product(x, given_weight, bias), x, weight, bias)
    part = drawn(outputs, 2 * inputs + 1)[:, ::2][:, :inputs]
    assert close(product(x, part, bias), x, part, bias)


def test_no_rows_give_no_rows() -> None:
    assert product(drawn(0, 3), drawn(2, 3), drawn(2)).shape == (0, 2)


def test_a_weight_that_onednn_reads_slowly_goes_to_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(products, "_onednn", refuse)
    monkeypatch.setattr(products, "_pack", refuse)
    x, wide = drawn(4, 6), drawn(6, 12)
    for weight in (wide[:, ::2], wide[:, :6], wide.double()[:, :6].contiguous()):
        given_x = x.to(weight.dtype)
        assert torch.equal(product(given_x, packed(weight, 4)), F.linear(given_x, weight))


@pytest.mark.parametrize("missing", ["turned off", "not there"])
def test_without_onednn_it_is_linear(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = drawn(5, 4), drawn(3, 4), drawn(3)
    if missing == "not there":
        monkeypatch.setattr(products, "_onednn", None)
    with torch.backends.mkldnn.flags(enabled=missing == "not there"):
        assert packed(weight, 5) is weight
        assert torch.equal(product(x, weight, bias), F.linear(x, weight, bias))


@given(st.floats(-60, 60), st.sampled_from(["tanh", "tanh_unit"]), st.floats(0.5, 4), st.sampled_from([0.1, 1.0]))
def test_the_clamp_by_a_sigmoid_is_the_clamp(raw: float, clamp_form: str, bound: float, gain: float) -> None:
    """To the rounding of numbers below one, times the bound; and so is its slope."""
    form = CouplingForm((1, 1), False, gain, bound, clamp_form)
    x = torch.tensor([raw])
    truth = (wide := x.double().requires_grad_(), soft_clamp(wide * gain, bound, clamp_form))[1]
    came = form.log_scale(x)
    assert (came - truth).abs() <= 8 * 2**-24 * bound
    (slope,) = torch.autograd.grad(truth.sum(), wide)
    assert (form.slope(came) - slope).abs() <= 2**-20 * gain * max(bound, 1)
    exact = form.log_scale(x.double())
    assert (exact - truth).abs() <= 1e-14
