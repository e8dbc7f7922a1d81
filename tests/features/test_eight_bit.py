"""Weights that 8-bit integers can store: error, repetition, extreme values, and the maps of a backbone with them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.errors import ConfigError
from semflow.features import TimmFeatures, round_weights
from semflow.features.eight_bit import to_integers, weight_scale
from semflow.recipes import Backbone


def layer(weight):
    made = torch.nn.Conv2d(weight.shape[1], len(weight), 3)
    with torch.no_grad():
        made.weight.copy_(weight)
    return made


@given(st.integers(0, 2**16), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
@settings(max_examples=25, deadline=None)
def test_weights_are_rounded_to_the_nearest_of_255_values(seed, size):
    generator = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(4, 5, 3, 3, generator=generator) * torch.tensor([1.0, 1e3, 1e-3, 0.0]).view(-1, 1, 1, 1)
    made = layer(weight)
    bias = made.bias.clone()
    round_weights(made)
    grid = weight.double().abs().amax((1, 2, 3), keepdim=True) / 127 * torch.arange(-127, 128)  # (4, 1, 1, 255)
    nearest = (weight.double()[..., None] - grid[:, None]).abs().amin(-1)
    error = (made.weight.double() - weight.double()).abs()
    assert bool((error <= nearest * (1 + 1e-4) + 1e-6 * weight.double().abs()).all())
    assert torch.equal(made.weight[3], torch.zeros(5, 3, 3))
    assert torch.equal(made.bias, bias)


def test_rounding_twice_changes_nothing():
    made = layer(torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0)))
    round_weights(made)
    once = made.weight.detach().clone()
    round_weights(made)
    torch.testing.assert_close(made.weight, once, rtol=1e-6, atol=0)
    scale = weight_scale(once)
    assert to_integers(once, scale).abs().amax((1, 2, 3)).tolist() == [127] * 8


def test_a_backbone_of_8_bits_has_nearly_the_same_maps():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    full, small = (TimmFeatures("test_resnet", "random", (8,), weight_bits=bits)(images)[0] for bits in (32, 8))
    error = (small - full).norm() / full.norm()
    assert 0 < error < 0.03


def test_weights_that_cannot_be_set_are_refused():
    normalized = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
    for network, found in ((normalized, "a computed one"), (torch.nn.Linear(4, 4).half(), "torch.float16")):
        with pytest.raises(ConfigError, match=f"^network must have float32 or float64 weights .*, but got {found}$"):
            round_weights(network)


def test_other_bits_are_refused():
    with pytest.raises(ConfigError, match=r"weight_bits must be 8 or 32, but got 4"):
        Backbone("test_resnet", weight_bits=4)
