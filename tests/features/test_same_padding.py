"""`same` padding by a longer kernel: the output of timm's convolutions, which pad a copy of the input."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from semflow.features import TimmFeatures
from semflow.features.same_padding import SameConv2d, replace_same_convolutions
from semflow.features.timm_module import load_timm

SIDES = st.integers(1, 24)
PAIRS = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(SIDES, SIDES, PAIRS, PAIRS, st.sampled_from([1, 2]), st.sampled_from([1, 4]), st.booleans())
def test_output_is_that_of_timm(
    height: int, width: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: int, groups: int, bias: bool
) -> None:
    conv = load_timm().layers.Conv2dSame(4, 8, kernel, stride, 0, dilation, groups, bias).double()
    network = nn.Sequential(conv)
    x = torch.randn(2, 4, height, width, dtype=torch.float64)
    expected = network(x)
    replace_same_convolutions(network)
    assert type(network[0]) is SameConv2d
    assert network[0].weight is conv.weight
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_a_traced_graph_has_the_kernel_of_the_weights() -> None:
    layer, x = SameConv2d(3, 4, 3, stride=2), torch.randn(1, 3, 8, 8)
    graph = torch.export.export(layer, (x,))
    torch.testing.assert_close(graph.module()(x), layer(x))
    targets = [str(node.target) for node in graph.graph.nodes]
    assert sum("pad" in target for target in targets) == 1  # of the input, which runtimes fuse
    assert list(graph.state_dict["weight"].shape) == [4, 3, 3, 3]


def test_layers_with_hooks_stay_and_backbones_have_no_other() -> None:
    conv = load_timm().layers.Conv2dSame(3, 4, 3, 2)
    conv.register_forward_hook(lambda *_: None)
    network = nn.Sequential(conv)
    replace_same_convolutions(network)
    assert network[0] is conv
    names = [type(m).__name__ for m in TimmFeatures("tf_efficientnet_lite0", "random").modules()]
    assert "Conv2dSame" not in names
    assert names.count("SameConv2d") == 5
