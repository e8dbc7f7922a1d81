"""Pyramid flows: inverse, log-det compared with the Jacobian, events, and coupling of scales."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.flows import (
    AffineCoupling,
    CrossScaleCoupling,
    GlobalAffine,
    HardPermutation,
    PyramidFlow,
    PyramidSequence,
    ScaleWise,
    Standardize,
    coupling_stack,
)
from semflow.nn import ConvSubnet, CrossScaleConvs, FusionSubnet, LocationSubnet, SinusoidalPosition2d
from semflow.testing.case import perturb

CHANNELS = (3, 4)
SIZES = ((4, 3), (2, 2))  # 2 is not exactly half of 3


def scale_wise() -> ScaleWise:
    return ScaleWise([coupling_stack(c, blocks=2, context_channels=8, standardize=True) for c in CHANNELS])


def sample_wise() -> ScaleWise:
    return ScaleWise([coupling_stack(3, 1, (ConvSubnet,)), GlobalAffine(4)])


CASES = {
    "scale wise": scale_wise,
    "one scale of samples": sample_wise,
    "cross scale": lambda: CrossScaleCoupling(CHANNELS, partial(CrossScaleConvs, hidden=6)),
    "cross scale swapped": lambda: CrossScaleCoupling(CHANNELS, partial(CrossScaleConvs, hidden=6), swap=True),
    "fusion": lambda: CrossScaleCoupling(CHANNELS, partial(FusionSubnet, hidden=5), clamp=1.9),
    "cs-flow": lambda: PyramidSequence(
        [
            ScaleWise([HardPermutation(c) for c in CHANNELS]),
            CrossScaleCoupling(CHANNELS, partial(CrossScaleConvs, hidden=6)),
            CrossScaleCoupling(CHANNELS, partial(CrossScaleConvs, hidden=6, kernel=5), swap=True),
        ]
    ),
    "msflow": lambda: PyramidSequence([scale_wise(), CrossScaleCoupling(CHANNELS, partial(FusionSubnet, hidden=5))]),
}


def make(name: str) -> tuple[PyramidFlow, list[Tensor], list]:
    torch.manual_seed(0)
    flow = CASES[name]().double()
    generator = torch.Generator().manual_seed(1)
    perturb(flow, 0.3, generator)
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, CrossScaleConvs):
                module.gain.add_(torch.randn(module.gain.shape, generator=generator).double())
    maps = [
        torch.randn(2, c, *size, dtype=torch.float64, generator=generator)
        for c, size in zip(CHANNELS, SIZES, strict=True)
    ]
    contexts = [SinusoidalPosition2d(8)(*size) for size in SIZES]
    return flow, maps, contexts


@pytest.mark.parametrize("name", CASES)
def test_inverse_and_log_det_match_the_jacobian(name) -> None:
    flow, maps, contexts = make(name)
    latents, log_dets = flow(maps, contexts)
    assert any(not torch.allclose(z, x) for z, x in zip(latents, maps, strict=True))
    for x, back in zip(maps, flow.inverse(latents, contexts), strict=True):
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-10)

    def flat(vector: Tensor) -> Tensor:
        parts = vector.split([x[0].numel() for x in maps])
        shaped = [part.view(1, *x.shape[1:]) for part, x in zip(parts, maps, strict=True)]
        return torch.cat([z.flatten() for z in flow(shaped, contexts)[0]])

    for b in range(2):
        jacobian = torch.autograd.functional.jacobian(flat, torch.cat([x[b].flatten() for x in maps]))
        expected = torch.linalg.slogdet(jacobian).logabsdet
        total = sum(log_det[b].sum() for log_det in log_dets)
        torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)
        first = maps[0][0].numel()
        crosses = jacobian[:first, first:].abs().max() > 1e-9 or jacobian[first:, :first].abs().max() > 1e-9
        assert crosses == flow.joint


@pytest.mark.parametrize("name", CASES)
def test_shapes_follow_the_events_and_images_are_independent(name) -> None:
    flow, maps, contexts = make(name)
    latents, log_dets = flow(maps, contexts)
    for event, z, x, log_det in zip(flow.events, latents, maps, log_dets, strict=True):
        assert z.shape == x.shape
        assert log_det.shape == ((2, *x.shape[2:]) if event == "location" else (2,))
    alone, alone_log_dets = flow([x[1:] for x in maps], contexts)
    for together, single in ((latents, alone), (log_dets, alone_log_dets)):
        for a, b in zip(together, single, strict=True):
            torch.testing.assert_close(a[1:], b, rtol=1e-12, atol=1e-12)
    if flow.joint:
        assert set(flow.events) == {"sample"}


def test_log_det_that_contradicts_the_event_raises() -> None:
    member = ScaleWise([GlobalAffine(3), GlobalAffine(4)])
    member.events = ("sample", "sample")
    flow = PyramidSequence([member, CrossScaleCoupling(CHANNELS)])
    with pytest.raises(RuntimeError):
        flow([torch.zeros(5, 3, 4, 3), torch.zeros(5, 4, 2, 2)])


def test_cross_scale_coupling_starts_as_the_identity() -> None:
    maps = [torch.randn(2, c, *size) for c, size in zip(CHANNELS, SIZES, strict=True)]
    latents, log_dets = CrossScaleCoupling(CHANNELS)(maps)
    assert all(torch.equal(z, x) for z, x in zip(latents, maps, strict=True))
    assert all((d == 0).all() for d in log_dets)


def test_standardizers_are_the_first_flows_of_scales() -> None:
    scales = scale_wise()
    assert [type(s) for s in scales.standardizers()] == [Standardize, Standardize]
    assert PyramidSequence([scales, CrossScaleCoupling(CHANNELS)]).standardizers() == scales.standardizers()
    assert ScaleWise([Standardize(3), GlobalAffine(4)]).standardizers()[1] is None
    assert CrossScaleCoupling(CHANNELS).standardizers() == [None, None]


def test_state_dict_keys_of_scale_wise_start_with_the_scale() -> None:
    assert "1.shift" in ScaleWise([GlobalAffine(3), GlobalAffine(4)]).state_dict()


def test_pyramid_flows_reject_invalid_arguments() -> None:
    with pytest.raises(ConfigError, match=r"flows\[1\] \(Linear\) must declare event"):
        ScaleWise([GlobalAffine(3), nn.Linear(2, 2)])
    with pytest.raises(ConfigError, match="the same number of scales"):
        PyramidSequence([ScaleWise([GlobalAffine(3)]), CrossScaleCoupling(CHANNELS)])
    with pytest.raises(ConfigError, match="at least 2 for each scale"):
        CrossScaleCoupling((4, 1))
    with pytest.raises(ConfigError, match="kernel must be odd"):
        CrossScaleConvs((2,), (2,), kernel=2)
    flow = sample_wise()
    with pytest.raises(ShapeError, match="maps must have 2 entries"):
        flow([torch.zeros(1, 3, 2, 2)])
    with pytest.raises(ShapeError, match="contexts must have 2 entries"):
        flow([torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 1, 1)], [None])
    with pytest.raises(ShapeError, match=r"x must be \(B, 4, H, W\)"):
        CrossScaleCoupling(CHANNELS)([torch.zeros(1, 3, 2, 2), torch.zeros(1, 5, 1, 1)])


def test_coupling_stack_alternates_subnets_and_scales_latents() -> None:
    flow = coupling_stack(6, 3, (ConvSubnet, partial(ConvSubnet, kernel=1)), permutation="soft", start=0.25)
    kinds = [layer for layer in flow if isinstance(layer, AffineCoupling)]
    assert [layer.event for layer in kinds] == ["sample", "location", "sample"]
    z, _ = flow(torch.randn(4, 6, 16, 16))
    assert z.std().item() == pytest.approx(0.25, rel=0.1)
    assert coupling_stack(6, 1, (LocationSubnet,)).event == "location"
    with pytest.raises(ConfigError, match="blocks must be at least 1"):
        coupling_stack(6, 0)
    with pytest.raises(ConfigError, match="permutation must be hard or soft"):
        coupling_stack(6, 1, permutation="random")
