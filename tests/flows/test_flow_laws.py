"""Laws of all flows for few and odd channels, one location and non-square maps; precision; rejected input."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from helpers.flow_cases import CASES, D, blocks, context_of, default_dtype, features
from semflow.errors import ConfigError, ShapeError
from semflow.flows import (
    AffineCoupling,
    CrossScaleCoupling,
    Flow,
    FlowSequence,
    GlobalAffine,
    HardPermutation,
    coupling_stack,
)
from semflow.nn import ConvSubnet, LearnedPosition2d, SinusoidalPosition2d
from semflow.testing import LAWS, check_flow

SIZES = [(3, 2, 3), (2, 1, 1), (2, 3, 2)]  # B, H, W; the last has B == W


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("channels", [2, 3, 8, 41])
@pytest.mark.parametrize("name", CASES)
def test_flows_satisfy_all_laws_in_float64(name: str, channels: int) -> None:
    with default_dtype(torch.float64):
        flow = CASES[name](channels)
        batch, height, width = SIZES[0] if channels > 3 else SIZES[2]
        context = context_of(flow, height, width)
        found = check_flow(
            flow, features(batch, channels, height, width), context, tolerance=1e-10, compile_backend=None
        )
    assert found.keys() == LAWS.keys()


@pytest.mark.parametrize("name", CASES)
def test_flows_satisfy_all_laws_in_float32(name: str) -> None:
    for channels, (batch, height, width) in ((3, SIZES[1]), (8, SIZES[0])):
        flow = CASES[name](channels)
        x = features(batch, channels, height, width)
        check_flow(flow, x, context_of(flow, height, width), tolerance=1e-5, compile_backend=None)


@pytest.mark.parametrize("name", [name for name in CASES if name != "eight-blocks"])
def test_flows_compile_to_one_graph(name: str) -> None:
    flow = CASES[name](5)
    check_flow(flow, features(2, 5, 2, 3), context_of(flow, 2, 3))


def test_sequence_compiles_to_one_graph() -> None:
    check_flow(blocks(4, count=2), features(2, 4, 2, 3), SinusoidalPosition2d(D)(2, 3))


@pytest.mark.parametrize("name", ["location-context-atan", "conv-context-swap", "eight-blocks"])
def test_flows_satisfy_all_laws_with_every_kind_of_context(name: str) -> None:
    """A map for all images, one for each image, and learned tables, with x in channels_last."""
    flow = CASES[name](6)
    x = features(2, 6, 3, 4).contiguous(memory_format=torch.channels_last)
    for context in (features(1, D, 3, 4, seed=2)[0], features(2, D, 3, 4, seed=2), LearnedPosition2d(D, 5, 5)(3, 4)):
        check_flow(flow, x, context, tolerance=1e-5, compile_backend=None)


@pytest.mark.parametrize("name", ["location", "conv", "global-affine", "eight-blocks", "mixed-events"])
def test_flows_with_large_scales_satisfy_all_laws(name: str) -> None:
    with default_dtype(torch.float64):
        flow = CASES[name](8)
        x = features(2, 8, 2, 3)
        check_flow(flow, x, context_of(flow, 2, 3), perturbation=1.0, tolerance=1e-8, compile_backend=None)


@pytest.mark.parametrize("name", CASES)
def test_float64_input_is_not_rounded(name: str) -> None:
    """A step of 1e-11 would vanish, or grow a hundred times, in float32."""
    with default_dtype(torch.float64):
        flow = CASES[name](6)
        context, x = context_of(flow, 2, 3), features(2, 6, 2, 3)
        z, log_det = flow(x, context)
        assert (z.dtype, log_det.dtype) == (torch.float64, torch.float64)
        again = flow(x + 1e-11, context)[0]
    assert 0 < (again - z).abs().max() < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_results_under_autocast_are_close(name: str) -> None:
    channels = 64
    flow = CASES[name](channels)
    x, context = features(2, channels, 4, 3), context_of(flow, 4, 3)
    with torch.no_grad():
        z, log_det = flow(x, context)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half_z, half_log_det = flow(x, context)
            x_again = flow.inverse(half_z, context)
    assert half_log_det.dtype == torch.float32
    # The relative error of a scale is 2^-9, and errors of channels and locations add up like a random walk.
    terms = channels * (12 if flow.event == "sample" else 1)
    assert (half_log_det - log_det).abs().max() < 0.05 * terms**0.5
    assert (half_z.float() - z).abs().max() < 0.1 * z.abs().max()
    assert (x_again.float() - x).abs().max() < 0.1 * x.abs().max()


def test_log_dets_are_summed_in_float32_under_autocast() -> None:
    """The sum of a thousand equal scales in bfloat16 would have an error above 1."""
    flow = AffineCoupling(2048, gain=1.0)
    with torch.no_grad():
        flow.subnet.weight_x.zero_()
        flow.subnet.bias.fill_(1.0)
        flow.subnet.output.weight.zero_()
        flow.subnet.output.bias.fill_(0.1)
        x = features(1, 2048, 1, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_det = flow(x)[1].item()
    bias = torch.tensor(0.1, dtype=torch.bfloat16).float()
    assert log_det == pytest.approx(1024 * 1.9 * torch.tanh(bias).item(), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if "context" in name or name == "eight-blocks"])
def test_conditional_flows_reject_wrong_contexts(name: str) -> None:
    flow, x = CASES[name](4), features(2, 4, 3, 5)
    code = SinusoidalPosition2d(D)
    for context in (None, code(5, 3), SinusoidalPosition2d(2 * D)(3, 5), torch.zeros(3, D, 3, 5), torch.zeros(3, 5)):
        with pytest.raises(ShapeError, match="context must be"):
            flow(x, context)
        with pytest.raises(ShapeError, match="context must be"):
            flow.inverse(x, context)


@pytest.mark.parametrize("name", CASES)
def test_flows_reject_another_number_of_channels(name: str) -> None:
    flow = CASES[name](4)
    for x in (features(2, 5, 3, 5), features(2, 4, 3, 5)[0]):
        for call in (flow, flow.inverse):
            with pytest.raises(ShapeError, match=r"x must be \(B, 4, H, W\), but got"):
                call(x, context_of(flow, 3, 5))


@pytest.mark.parametrize("channels", [0, 1])
def test_coupling_rejects_fewer_than_two_channels(channels: int) -> None:
    with pytest.raises(ConfigError, match="channels must be at least 2"):
        AffineCoupling(channels)


@pytest.mark.parametrize("clamp", [0.0, -1.9])
def test_couplings_reject_nonpositive_clamp(clamp: float) -> None:
    for build in (partial(AffineCoupling, 4), partial(CrossScaleCoupling, (4, 4)), partial(coupling_stack, 4, 1)):
        with pytest.raises(ConfigError, match=f"clamp must be positive, but got {clamp}"):
            build(clamp=clamp)


def test_coupling_rejects_unknown_clamp_form() -> None:
    with pytest.raises(ConfigError, match="form must be one of"):
        AffineCoupling(4, clamp_form="hard")(features(1, 4, 2, 2))  # type: ignore[arg-type]


def test_coupling_keeps_the_larger_half() -> None:
    x = features(2, 5, 2, 2)
    for swap, kept, moved in ((False, slice(0, 3), slice(3, 5)), (True, slice(2, 5), slice(0, 2))):
        flow = AffineCoupling(5, swap=swap)
        z, _ = flow(x)
        assert torch.equal(z[:, kept], x[:, kept])
        assert (z[:, moved] != x[:, moved]).all()


def test_flows_keep_channels_last() -> None:
    """Then no flow copies the map to get its locations."""
    x = features(2, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    for flow in (AffineCoupling(8), GlobalAffine(8), HardPermutation(8), CASES["standardize"](8)):
        z, _ = flow(x)
        assert z.is_contiguous(memory_format=torch.channels_last)


def test_sequence_event_is_sample_if_one_member_is() -> None:
    location, sample = AffineCoupling(4), AffineCoupling(4, ConvSubnet)
    assert (location.event, sample.event) == ("location", "sample")
    for parts, event in (([location], "location"), ([sample, location], "sample"), ([location, sample], "sample")):
        flow = FlowSequence(parts)
        assert (flow.event, FlowSequence([flow]).event) == (event, event)
        x = features(3, 4, 3, 3)
        expected = torch.zeros(3)
        for part in parts:
            x, log_det = part(x)
            expected = expected + (log_det if part.event == "sample" else log_det.sum((1, 2)))
        total = flow(features(3, 4, 3, 3))[1]
        assert torch.allclose(total if event == "sample" else total.sum((1, 2)), expected, atol=1e-5)


def test_sequence_rejects_modules_without_event() -> None:
    with pytest.raises(ConfigError, match="at least one flow"):
        FlowSequence([])
    with pytest.raises(ConfigError, match=r"flows\[1\] \(Linear\) must declare event"):
        FlowSequence([GlobalAffine(2), nn.Linear(2, 2)])
    flow = GlobalAffine(2)
    flow.event = "batch"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"must declare event .* but got 'batch'"):
        FlowSequence([flow])


def test_sequence_supports_len_iteration_and_indexing() -> None:
    parts = [GlobalAffine(2), HardPermutation(2)]
    flow = FlowSequence(parts)
    assert len(flow) == 2
    assert list(flow) == parts
    assert flow[1] is parts[1]


def test_flow_without_methods_raises_type_error() -> None:
    for call in (Flow(), Flow().inverse):
        with pytest.raises(TypeError, match="Flow must define"):
            call(features(1, 2, 1, 1))


@pytest.mark.parametrize("name", CASES)
def test_repr_shows_class_and_channels(name: str) -> None:
    flow = CASES[name](4)
    assert repr(flow).startswith(f"{type(flow).__name__}(")
    assert "4" in repr(flow)


def test_log_scales_stay_within_the_clamp() -> None:
    x = 50 * features(2, 6, 2, 2)
    for form, bound in product(("tanh", "tanh_unit", "atan"), (0.5, 1.9)):
        flow = AffineCoupling(6, clamp=bound, clamp_form=form, gain=100.0)
        log_det = flow(x)[1]
        assert log_det.abs().max() <= 3 * bound * (1 + 1e-6)
        assert log_det.abs().max() > 0.9 * bound  # an odd number of scales, each at its bound
