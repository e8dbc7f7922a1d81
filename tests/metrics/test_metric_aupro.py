"""AUPRO compared with its definition in exact fractions, and its invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers.aupro_truth import reference_aupro
from helpers.devices import DEVICE
from semflow.errors import ConfigError, ShapeError
from semflow.metrics import aupro, auroc, average_precision, f1_max, pixel_metrics

LIMITS = st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.77, 1.0])


SCORES = {
    "continuous": st.floats(-5, 5, width=32),
    "tied": st.integers(0, 3).map(float),
    "two values": st.integers(0, 1).map(float),
    "constant": st.just(0.5),
    "large": st.floats(2.0**100, 2.0**127, width=32),
    "infinite": st.sampled_from([-np.inf, 0.0, 1.0, np.inf]),
}


@st.composite
def cases(draw, kinds=tuple(SCORES)):
    """Draw maps of one size with masks of both kinds of pixels."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(2, 6)))
    scores = draw(hnp.arrays(np.float32, shape, elements=SCORES[draw(st.sampled_from(kinds))]))
    masks = draw(hnp.arrays(np.bool_, shape, elements=st.sampled_from([True, False, False])))
    image = draw(st.integers(0, shape[0] - 1))
    masks[image, 0, 0], masks[image, -1, -1] = True, False
    return scores, masks


@settings(max_examples=250)
@given(cases(), LIMITS)
def test_aupro_equals_its_definition(case, limit):
    scores, masks = case
    value = aupro(scores, masks, limit)
    assert type(value) is float
    assert 0 <= value <= 1
    assert value == pytest.approx(reference_aupro(scores, masks, limit), abs=1e-9)


@settings(max_examples=50)
@given(cases(), st.floats(0.001, 1.0))
def test_aupro_equals_its_definition_at_any_limit(case, limit):
    scores, masks = case
    assert aupro(scores, masks, limit) == pytest.approx(reference_aupro(scores, masks, limit), abs=1e-9)


@settings(max_examples=60)
@given(cases(), LIMITS, st.sampled_from(["one anomalous", "one normal", "regions of one"]))
def test_aupro_of_single_pixels(case, limit, kind):
    """One anomalous pixel, one normal pixel, or regions of one pixel each."""
    scores, masks = case
    if kind == "regions of one":
        masks[:, 1::2], masks[:, :, 1::2] = False, False
        assert aupro(scores, masks, 1.0) == pytest.approx(auroc(scores, masks), abs=1e-12)  # equal weights
    else:
        masks[:] = kind == "one normal"
        masks[-1, 0, 1] = not masks[-1, 0, 1]
    assert aupro(scores, masks, limit) == pytest.approx(reference_aupro(scores, masks, limit), abs=1e-9)


@pytest.mark.parametrize("levels", [1, 2, 7, 10**6])
def test_aupro_equals_its_definition_on_larger_maps(levels):
    """Regions with holes and of all sizes, from constant maps to few ties."""
    random = np.random.default_rng(levels)
    coarse = random.random((2, 6, 5)).repeat(4, 1).repeat(4, 2)
    masks = coarse + 0.3 * random.random(coarse.shape) > 0.9
    scores = np.floor((0.5 * coarse + random.random(coarse.shape)) * levels)
    for limit in (0.01, 0.3, 1.0):
        assert aupro(scores, masks, limit) == pytest.approx(reference_aupro(scores, masks, limit), abs=1e-9)


@settings(max_examples=60)
@given(cases(("tied", "continuous")), LIMITS)
def test_aupro_accepts_maps_of_different_sizes(case, limit):
    scores, masks = case
    maps = [s[: s.shape[0] - i % s.shape[0]] for i, s in enumerate(scores)]
    parts = [m[: m.shape[0] - i % m.shape[0]] for i, m in enumerate(masks)]
    maps.append(np.array([[0.0, 1.0, 2.0]], dtype=np.float32))
    parts.append(np.array([[True, False, True]]))
    expected = reference_aupro(maps, parts, limit)
    assert aupro(maps, parts, limit) == pytest.approx(expected, abs=1e-9)
    tensors = tuple(torch.from_numpy(m.copy()) for m in maps)
    assert pixel_metrics(tensors, parts, limit).aupro == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60)
@given(cases(), LIMITS)
def test_aupro_is_invariant_to_ranks_order_and_flips(case, limit):
    scores, masks = case
    value = aupro(scores, masks, limit)
    ranks = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    assert aupro(ranks, masks, limit) == value
    assert aupro(np.exp2(ranks.astype(np.float64)), masks, limit) == value
    same = pytest.approx(value, abs=1e-12)
    assert aupro(scores[::-1], masks[::-1], limit) == same  # order of images
    assert aupro(scores[:, ::-1, ::-1], masks[:, ::-1, ::-1], limit) == same
    assert aupro(scores.transpose(0, 2, 1), masks.transpose(0, 2, 1), limit) == same
    assert aupro(np.concatenate([scores] * 2), np.concatenate([masks] * 2), limit) == same
    padding = ((0, 0), (1, 0), (0, 2))  # padding adds no region
    lowest = np.pad(ranks, padding, constant_values=-1)
    assert aupro(lowest, np.pad(masks, padding), 1.0) >= aupro(ranks, masks, 1.0) - 1e-12


@settings(max_examples=60)
@given(cases())
def test_aupro_of_one_region_up_to_fpr_one_is_auroc(case):
    scores, masks = case
    scores, mask = scores[0], np.zeros(masks.shape[1:], dtype=bool)
    mask[0, : mask.shape[1] - 1] = True
    assert aupro(scores, mask, 1.0) == pytest.approx(auroc(scores, mask), abs=1e-12)


@settings(max_examples=60)
@given(cases(), LIMITS)
def test_pixel_metrics_equal_the_single_metrics(case, limit):
    scores, masks = case
    single = (
        auroc(scores, masks),
        average_precision(scores, masks),
        f1_max(scores, masks),
        aupro(scores, masks, limit),
    )
    assert pixel_metrics(scores, masks, limit) == single


def test_aupro_merges_tied_scores_at_the_limit():
    # The anomalous pixel ties with two of four normal pixels: one segment from FPR 1/4 to 3/4.
    scores = np.array([[4.0, 2.0, 2.0, 1.0, 2.0]])
    mask = np.array([[False, False, False, False, True]])
    assert aupro(scores, mask, 0.25) == 0.0
    assert aupro(scores, mask, 0.5) == pytest.approx(0.25 * 0.5 / 2 / 0.5)  # half of the ramp: a triangle
    assert aupro(scores, mask, 0.75) == pytest.approx(0.25 / 0.75)  # the whole ramp
    assert aupro(scores, mask, 1.0) == pytest.approx(0.25 + 0.25)


def test_aupro_weights_regions_equally():
    mask = np.zeros((6, 6), dtype=bool)
    mask[0, 0] = mask[2:, 2:] = True  # one pixel, sixteen pixels
    found = np.zeros((6, 6))
    found[0, 0] = 1.0
    # The small region is found at FPR 0, the other on a ramp from (0, 1/2) to (1, 1).
    assert aupro(found, mask, 1.0) == pytest.approx(0.75)
    assert aupro(found, mask, 0.5) == pytest.approx((0.5 + 0.75) / 2)


def test_aupro_connects_diagonal_pixels():
    one, two = np.zeros((2, 4, 4), dtype=bool)
    one[0, 0] = one[1, 1] = one[2, 1] = True
    two[0, 0] = two[2, 1] = two[2, 2] = True  # one pixel apart
    scores = np.zeros((4, 4))
    scores[0, 0] = 1.0
    assert aupro(scores, one, 1.0) == pytest.approx((1 / 3 + 1) / 2)
    assert aupro(scores, two, 1.0) == pytest.approx((1 / 2 + 1) / 2)


def test_aupro_separates_regions_of_different_images():
    masks = np.zeros((2, 3, 3), dtype=bool)
    masks[0, :, 2] = masks[1, :, 0] = True
    masks[1, 2, 2] = True
    scores = np.zeros((2, 3, 3))
    scores[1, 2, 2] = 1.0  # one of three regions
    assert aupro(scores, masks, 1.0) == pytest.approx((1 / 3 + 1) / 2)


def test_aupro_of_perfect_and_inverted_maps():
    masks = np.zeros((3, 20, 20), dtype=bool)
    masks[0, 2:9, 3:10] = masks[1, 15:, 15:] = True
    assert aupro(masks.astype(np.float32), masks) == pytest.approx(1.0, abs=1e-12)
    assert aupro(-masks.astype(np.float32), masks) == 0.0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.uint8]
)
def test_aupro_accepts_every_dtype(dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 200, (2, 8, 8), generator=generator).to(dtype)
    masks = torch.rand(2, 8, 8, generator=generator) > 0.7
    expected = reference_aupro(scores.float().numpy(), masks.numpy(), 0.3)
    assert aupro(scores, masks) == pytest.approx(expected, abs=1e-9)
    assert aupro(scores, masks.long().numpy()) == pytest.approx(expected, abs=1e-9)
    if dtype.is_floating_point:
        assert aupro(scores.requires_grad_(), masks) == pytest.approx(expected, abs=1e-9)


@pytest.mark.cuda
def test_pixel_metrics_accept_cuda_tensors():
    scores = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = scores > 0.5
    assert pixel_metrics(scores.to(DEVICE), masks.to(DEVICE)) == pixel_metrics(scores, masks)
    assert aupro(list(scores.to(DEVICE)), list(masks)) == aupro(scores, masks)


MAPS = np.arange(8.0).reshape(2, 2, 2)
MASKS = MAPS > 5


@pytest.mark.parametrize("metric", [aupro, pixel_metrics])
@pytest.mark.parametrize(
    ("scores", "masks", "message"),
    [
        (MAPS, np.zeros_like(MASKS), "anomaly_masks must .* got 8 normal and 0 anomalous"),
        (MAPS, np.ones_like(MASKS), "anomaly_masks must .* got 0 normal and 8 anomalous"),
        (np.empty((0, 4, 4)), np.empty((0, 4, 4), bool), "got 0 normal and 0 anomalous"),
        (np.empty((3, 0, 4)), np.empty((3, 0, 4), bool), "got 0 normal and 0 anomalous"),
        ([], [], "got 0 normal and 0 anomalous"),
        (np.where(MAPS == 2, np.nan, MAPS), MASKS, r"scores\[0\] must .* 1 NaN"),
        (MAPS, MASKS[:1], "anomaly_masks must .* 2 maps, but got 1"),
        (MAPS, MASKS[:, :1], r"scores\[0\] and anomaly_masks\[0\] must .* \(2, 2\) and \(1, 2\)"),
        (MAPS[:, None], MASKS[:, None], r"scores must .* got \(2, 1, 2, 2\)"),
        ([MAPS], [MASKS], r"scores\[0\] must .* got \(2, 2, 2\)"),
        (MAPS.ravel(), MASKS.ravel(), r"scores must .* got \(8,\)"),
        (MAPS, MASKS * 255, r"anomaly_masks\[1\] must .* got 255; .*mask > 0"),
        (MAPS.astype(complex), MASKS, "scores must have real numbers"),
    ],
)
def test_pixel_metrics_reject_invalid_input(metric, scores, masks, message):
    with pytest.raises(ShapeError, match=message) as caught:
        metric(scores, masks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, 30, float("nan")])
def test_pixel_metrics_reject_invalid_limits(limit):
    for metric in (aupro, pixel_metrics):
        with pytest.raises(ConfigError, match=r"fpr_limit must be in \(0, 1\], but got"):
            metric(MAPS, MASKS, limit)


def test_pixel_metrics_do_not_change_arguments():
    scores, masks = MAPS.copy(), MASKS.copy()
    pixel_metrics(scores, masks)
    pixel_metrics(scores[::-1], masks)
    assert (scores == MAPS).all()
    assert (masks == MASKS).all()
