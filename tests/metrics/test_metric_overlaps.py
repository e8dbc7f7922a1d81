"""AUPIMO and sPRO compared with their definitions, in functions, batches and shards."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers.overlap_truth import reference_aupimo, reference_spro
from semflow.errors import ConfigError, ShapeError
from semflow.metrics import AupimoAccumulator, Defect, HistogramAccumulator, SproAccumulator, aupimo, aupro, spro
from semflow.metrics.saturated import split_defects

pytestmark = pytest.mark.filterwarnings("ignore:AUPIMO needs at least")

SCORES = {
    "continuous": st.floats(-5, 5, width=32),
    "tied": st.integers(0, 3).map(float),
    "constant": st.just(0.5),
    "large": st.floats(2.0**100, 2.0**127, width=32),
    "infinite": st.sampled_from([-np.inf, 0.0, 1.0, np.inf]),
}
BOUNDS = st.sampled_from([(1e-5, 1e-4), (0.01, 0.2), (0.1, 0.5), (0.3, 1.0), (0.05, 0.050001)])


@st.composite
def images(draw):
    """Draw maps of several sizes, of which the first is normal and the last anomalous."""
    elements = SCORES[draw(st.sampled_from(list(SCORES)))]
    maps, masks = [], []
    for number in range(draw(st.integers(2, 5))):
        shape = (draw(st.integers(1, 4)), draw(st.integers(2, 4)))
        maps.append(draw(hnp.arrays(np.float32, shape, elements=elements)))
        masks.append(draw(hnp.arrays(np.bool_, shape, elements=st.sampled_from([True, False, False]))))
        if number == 0 or draw(st.booleans()):
            masks[-1][:] = False
    masks[-1][0, 0], masks[-1][-1, -1] = True, False
    return maps, masks


@st.composite
def defective(draw):
    """Draw maps with overlapping, unconnected and empty defects of any saturation, the first map with one."""
    elements = SCORES[draw(st.sampled_from(list(SCORES)))]
    saturations = st.one_of(st.integers(1, 30), st.floats(0.1, 10))
    maps, defects = [], []
    for number in range(draw(st.integers(1, 3))):
        shape = (draw(st.integers(1, 4)), draw(st.integers(2, 4)))
        maps.append(draw(hnp.arrays(np.float32, shape, elements=elements)))
        masks = [draw(hnp.arrays(np.bool_, shape)) for _ in range(draw(st.integers(number == 0, 3)))]
        for mask in masks:
            mask[-1, -1] = False
            mask[0, 0] |= number == 0
        defects.append([Defect(mask, draw(saturations)) for mask in masks])
    return maps, defects


@settings(max_examples=100, deadline=None)
@given(images(), BOUNDS)
def test_aupimo_equals_its_definition(case, bounds):
    maps, masks = case
    found, expected = aupimo(maps, masks, bounds), reference_aupimo(maps, masks, bounds)
    # A segment of this width is exact to 1e-10 only by a rule without cancellation, which the reference is not.
    tolerance = 1e-10 if bounds[1] / bounds[0] > 1.1 else 1e-6
    assert found.of_images == pytest.approx(expected, abs=tolerance, nan_ok=True)
    assert found.mean == pytest.approx(np.nanmean(expected), abs=tolerance)
    assert type(found.mean) is float


@settings(max_examples=50, deadline=None)
@given(images(), BOUNDS, st.randoms())
def test_aupimo_of_shards_that_keep_only_the_highest_scores_is_that_of_all(case, bounds, random):
    maps, masks = case
    whole = aupimo(maps, masks, bounds)
    shards = [AupimoAccumulator(bounds, images=len(maps)) for _ in range(2)]
    for one_map, mask in zip(maps, masks, strict=True):
        random.choice(shards).update([one_map], [mask])
    total = AupimoAccumulator(bounds, images=len(maps))
    total.merge(iter(pickle.loads(pickle.dumps(shards))))
    assert total.compute().mean == pytest.approx(whole.mean, abs=1e-12)
    values, expected = (np.sort(one.of_images) for one in (total.compute(), whole))  # NaN last
    assert values == pytest.approx(expected, abs=1e-12, nan_ok=True)
    with pytest.raises(ConfigError, match="must be accumulators with the arguments"):
        total.merge(AupimoAccumulator(bounds))


@pytest.mark.parametrize("levels", [50, 10**9])
def test_aupimo_at_the_published_bounds_keeps_few_scores(levels):
    """Of 600,000 normal pixels, 60 are above the highest rate; ties at many levels keep more."""
    random = np.random.default_rng(0)
    maps = np.round(random.normal(size=(64, 100, 100)) * levels).astype(np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[60:, 40:60, 40:60] = True
    maps[masks] += np.float32(4 * levels)
    found, lean = aupimo(torch.from_numpy(maps), torch.from_numpy(masks)), AupimoAccumulator(images=64)
    for one_map, mask in zip(maps, masks, strict=True):
        lean.update(one_map, mask)
    assert lean.compute().of_images == pytest.approx(found.of_images, abs=1e-12, nan_ok=True)
    if levels > 50:
        assert len(pickle.dumps(lean)) < 200_000  # of 2.4 MB
    # The definition, where only the curve near the bounds has to be looked at
    highest = np.sort(maps[:60], axis=None)[::-1][:70].astype(float)
    grid = np.exp(np.linspace(np.log(1e-5), np.log(1e-4), 200_001))
    thresholds = highest[np.floor(grid * 600_000).astype(int)]
    for image in range(60, 64):
        overlap = (maps[image][masks[image]][:, None] > thresholds[::50]).mean(0)
        assert found.of_images[image] == pytest.approx(overlap.mean(), abs=0.02 if levels == 50 else 2e-4)
    assert 0.05 < found.mean < 0.95


def test_aupimo_of_ties_is_the_mean_over_their_orders():
    """Ties are one straight segment: constant maps find a share x of the anomaly at the rate x."""
    maps, masks = np.zeros((2, 10, 10)), np.zeros((2, 10, 10), bool)
    masks[1, 0] = True
    assert aupimo(maps, masks, (0.1, 0.4)).mean == pytest.approx(0.3 / np.log(4), abs=1e-12)
    assert aupimo(masks.astype(float), masks).mean == 1.0
    assert aupimo(-masks.astype(float), masks).mean == 0.0


def test_aupimo_counts_images_equally_and_only_normal_ones():
    large, small = np.zeros((20, 20)), np.array([[1.0, 0.0], [0.0, 0.0]])
    anomalous, mask = np.array([[0.5, 9.0]]), np.array([[True, False]])
    empty = [np.zeros((20, 20)), np.zeros((2, 2))]
    # One of four pixels of one of two normal images is above, and the 9 outside of the anomaly does not count.
    rate = 1 / 8
    found = aupimo([large, small, anomalous], [*empty, mask], (0.05, 0.5)).mean
    assert found == pytest.approx(np.log(0.5 / rate) / np.log(10), abs=1e-12)
    inside = [np.ones((20, 20)), np.array([[0, 1], [1, 1]]), np.ones((1, 2))]
    assert aupimo([large, small, anomalous], [*empty, mask], (0.05, 0.5), inside).mean == 1.0
    inside[2] = np.array([[0, 1]])
    with pytest.raises(ShapeError, match="but got 2 normal and 0 anomalous"):
        aupimo([large, small, anomalous], [*empty, mask], (0.05, 0.5), inside)


def test_aupimo_of_too_few_normal_pixels_warns():
    maps, masks = np.zeros((3, 250, 200)), np.zeros((3, 250, 200), bool)
    masks[0, 0, 0] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aupimo(maps, masks)  # of 100,000
    with pytest.warns(UserWarning, match="at least 100000 normal pixels for rates from 1e-05 on, but got 50000"):
        aupimo(maps[:2], masks[:2])


@settings(max_examples=50, deadline=None)
@given(defective(), st.sampled_from([0.05, 0.5]))
def test_overlaps_depend_only_on_ranks(case, limit):
    maps, defects = case
    _, ranks = np.unique(np.concatenate([one.ravel() for one in maps]), return_inverse=True)
    ranked = np.split(ranks, np.cumsum([one.size for one in maps])[:-1])
    ranked = [one.reshape(like.shape) for one, like in zip(ranked, maps, strict=True)]
    assert spro(ranked, defects, limit) == spro(maps, defects, limit)
    masks = [np.zeros_like(maps[0], bool), *(np.ones_like(one, bool) for one in maps[1:])]
    if len(maps) > 1:
        found, expected = (aupimo(x, masks, (0.1, 0.6)).of_images for x in (ranked, maps))
        assert found == pytest.approx(expected, abs=0, nan_ok=True)


def test_aupimo_rejects_invalid_input():
    maps, masks = np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool)
    with pytest.raises(ShapeError, match="but got 2 normal and 0 anomalous"):
        aupimo(maps, masks)
    with pytest.raises(ShapeError, match="but got 0 normal and 2 anomalous"):
        aupimo(maps, ~masks)
    for bounds in ((0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.1, 1.1)):
        with pytest.raises(ConfigError, match="fpr_bounds must be 0 < low < high <= 1"):
            aupimo(maps, masks, bounds)
    with pytest.raises(ConfigError, match="fpr_bounds must be"):
        aupimo(maps, masks, (float("nan"), 0.1))
    with pytest.raises(ConfigError, match="images must be at least 1, but got 0"):
        AupimoAccumulator(images=0)
    metric = AupimoAccumulator()
    with pytest.raises(ShapeError, match="NaN"):
        metric.update([maps[0], maps[1] * np.nan], [masks[0], masks[1]])
    with pytest.raises(ShapeError, match="but got 0 normal and 0 anomalous"):  # the first map was not added either
        metric.compute()


@settings(max_examples=100, deadline=None)
@given(defective(), st.sampled_from([0.01, 0.05, 0.3, 0.77, 1.0]))
def test_spro_equals_its_definition(case, limit):
    maps, defects = case
    expected = pytest.approx(reference_spro(maps, defects, limit), abs=1e-10)
    assert spro(maps, defects, limit) == expected
    shards = [SproAccumulator(), SproAccumulator()]
    for number, (one_map, its) in enumerate(zip(maps, defects, strict=True)):
        tensors = [Defect(torch.from_numpy(mask), saturation) for mask, saturation in its]
        shards[number % 2].update([torch.from_numpy(one_map)], [tensors])
    shards[0].merge(pickle.loads(pickle.dumps(shards[1])))
    assert shards[0].compute(limit) == expected


def test_spro_of_unsaturated_regions_is_aupro():
    random = np.random.default_rng(0)
    scores, masks = random.normal(size=(2, 12, 12)).round(1), np.zeros((2, 12, 12), bool)
    masks[0, 1:4, 2:8] = masks[1, 6:, 6:9] = True
    first, second = np.zeros((2, 12, 12), bool)
    first[8:10, 1], second[8:10, 2] = True, True
    defects = [[Defect(masks[0], 18), Defect(first, 99)], [Defect(masks[1], 1e9), Defect(second, 2)]]
    for limit in (0.05, 0.3):
        expected = aupro(scores, masks | np.stack([first, second]), limit)
        assert spro(scores, defects, limit) == pytest.approx(expected, abs=1e-12)
    counts = HistogramAccumulator(16)
    counts.add(split_defects(scores, defects))
    assert counts.compute(0.3).aupro.value == pytest.approx(expected, abs=1e-12)  # a bin for each score


def test_spro_is_one_as_soon_as_a_defect_is_saturated():
    scores, mask = np.zeros((1, 10, 10)), np.zeros((10, 10), bool)
    mask[2:8, 2:8] = True
    scores[0, 4, 4:7] = 1.0
    assert spro(scores, [[Defect(mask, 3)]]) == 1.0
    assert spro(scores, [[Defect(mask, 6)]], 0.5) == pytest.approx(0.5 + 0.5 * 0.5 / 2, abs=1e-12)
    outside = np.ones((1, 10, 10))
    outside[0, 4, 4] = 0
    assert spro(scores, [[Defect(mask, 3)]], inside=outside) < 1


def test_spro_rejects_invalid_input():
    scores, mask = np.zeros((1, 2, 2)), np.eye(2, dtype=bool)
    for saturation in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"saturation of defects\[0\]\[0\] must be a positive number"):
            spro(scores, [[Defect(mask, saturation)]])
    with pytest.raises(ShapeError, match="defects must have one list for each of 1 maps, but got 2"):
        spro(scores, [[], []])
    with pytest.raises(ShapeError, match=r"scores\[0\] and defects\[0\]\[0\] must have one shape"):
        spro(scores, [[Defect(mask[:1], 1)]])
    with pytest.raises(ShapeError, match="got 4 normal and 0 anomalous"):
        spro(scores, [[]])
    with pytest.raises(ConfigError, match="fpr_limit"):
        spro(scores, [[Defect(mask, 1)]], 0.0)
    with pytest.raises(ShapeError, match="inside must have one mask"):
        spro(scores, [[Defect(mask, 1)]], inside=np.ones((2, 2, 2)))
