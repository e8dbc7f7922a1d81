"""SameConv2d gives what torch.nn.Conv2d gives, by whichever way it takes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from semflow.nn import SameConv2d
from semflow.nn.convolution import FEW, neighbour_product


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    kernel=st.sampled_from([1, 3, 5]),
    last=st.booleans(),
)
def test_neighbour_product_is_the_convolution(batch, inputs, outputs, height, width, kernel, last) -> None:
    """Values, gradients and gradients of gradients."""
    given = draw(batch, inputs, height, width), draw(outputs, inputs, kernel, kernel, seed=1), draw(outputs, seed=2)
    layout = torch.channels_last if last else torch.contiguous_format
    x, weight, bias = (t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in given)
    for t in (x, weight, bias):
        t.requires_grad_()
    upper = draw(batch, outputs, height, width, seed=3)

    def all_of(convolve) -> list[Tensor]:
        y = convolve(x, weight, bias).pow(2)
        first = torch.autograd.grad(y, (x, weight, bias), upper, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight, bias))
        return [y, *first, *second]

    peer = all_of(lambda *t: nn.functional.conv2d(*t, padding=kernel // 2))
    for ours, theirs in zip(all_of(neighbour_product), peer, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_weight_over_few_locations_goes_by_the_product(dtype: torch.dtype, monkeypatch) -> None:
    """In training alone: the number of images must not change what one of them scores."""
    ways = []
    monkeypatch.setattr("semflow.nn.convolution.neighbour_product", lambda *t: ways.append(1) or neighbour_product(*t))
    ours, theirs = SameConv2d(64, 128, 3).to(dtype), nn.Conv2d(64, 128, 3, padding=1).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    most = ours.weight.numel() // FEW
    for images, taken in ((most + 1, 0), (most, 1)):
        x = draw(images, 64, 1, 1, dtype=dtype)
        result = ours(x)
        assert len(ways) == taken
        torch.testing.assert_close(result, theirs(x), rtol=1e-5, atol=1e-5)
        result.square().sum().backward()
        theirs(x).square().sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-4)
            assert a.grad.stride() == a.stride()
            a.grad = b.grad = None
        with torch.no_grad():
            ours(x)
        assert len(ways) == taken
    ours.requires_grad_(False)(x)
    assert len(ways) == 1


def test_a_batch_of_no_image() -> None:
    assert SameConv2d(300, 600, 3)(torch.zeros(0, 300, 2, 2)).shape == (0, 600, 2, 2)


def test_weights_are_drawn_as_torch_draws_them() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = SameConv2d(4, 6, 3)
        torch.manual_seed(0)
        theirs = nn.Conv2d(4, 6, 3, padding=1)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
