"""Accumulators give the metrics of the functions for any division into batches."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from semflow.errors import ConfigError, ShapeError
from semflow.metrics import ImageAccumulator, PixelAccumulator, image_metrics, pixel_metrics


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    masks = rng.random((10, 6, 7)) > 0.8
    masks[:4] = False
    scores = np.round(rng.normal(size=masks.shape) + masks, 1).astype(np.float32)
    return torch.from_numpy(scores), torch.from_numpy(masks)


def splits(n):
    return [[n], [1] * n, [4, n - 4], [3, 3, n - 6]]


@pytest.mark.parametrize("sizes", splits(10))
def test_accumulators_do_not_depend_on_the_batches(data, sizes):
    maps, masks = data
    scores, labels = maps.amax((1, 2)), masks.any(2).any(1)
    image, pixel = ImageAccumulator(), PixelAccumulator()
    for s, label, m, mask in zip(*(x.split(sizes) for x in (scores, labels, maps, masks)), strict=True):
        image.update(s, label)
        pixel.update(m, mask)
    assert image.compute() == image_metrics(scores, labels)
    assert pixel.compute() == pytest.approx(pixel_metrics(maps, masks), abs=1e-12)
    assert pixel.compute(fpr_limit=0.05) == pytest.approx(pixel_metrics(maps, masks, 0.05), abs=1e-12)
    assert pixel.compute() == pixel.compute()  # computing does not change the state


def test_merge_adds_the_data_and_reset_removes_it(data):
    maps, masks = data
    shards = []
    for part in (slice(0, 3), slice(3, 10)):
        shard = PixelAccumulator()
        shard.update(maps[part], masks[part])
        shards.append(pickle.loads(pickle.dumps(shard)))  # as between processes
    first, second = shards
    alone = second.compute()
    first.merge(second)
    assert first.compute() == pytest.approx(pixel_metrics(maps, masks), abs=1e-12)
    assert second.compute() == alone
    first.reset()
    with pytest.raises(ShapeError, match="got 0 normal and 0 anomalous"):
        first.compute()
    assert second.compute() == alone
    first.update(maps, masks)
    assert first.compute() == pixel_metrics(maps, masks)


def shard(kind, scores, labels):
    """Accumulate the data of one process; arguments and result are pickled."""
    accumulator = kind()
    for one, label in zip(scores, labels, strict=True):
        accumulator.update(one[None], label[None])
    return accumulator


def test_merge_of_processes_gives_the_metrics_of_one(data):
    """The order of merging does not matter, nor does merging one by one or all at once."""
    maps, masks = (x.numpy() for x in data)
    scores, labels = maps.max((1, 2)), masks.any((1, 2))
    jobs = ((PixelAccumulator, maps, masks), (ImageAccumulator, scores, labels))
    here = [shard(kind, s[:3], t[:3]) for kind, s, t in jobs]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(shard, *zip(*((kind, s[3:], t[3:]) for kind, s, t in jobs), strict=True)))
    for kind, parts, alone in (
        (PixelAccumulator, (here[0], there[0]), pixel_metrics(maps, masks)),
        (ImageAccumulator, (here[1], there[1]), image_metrics(scores, labels)),
    ):
        for order in (parts, parts[::-1]):
            at_once, one_by_one = kind(), kind()
            at_once.merge(iter(order))
            for part in order:
                one_by_one.merge(part)
            for merged in (at_once, one_by_one):
                assert merged.compute()[:3] == alone[:3]  # ranks are integers, so the result is exact
                assert merged.compute() == pytest.approx(alone, rel=1e-14)  # AUPRO depends on the order of a sum
    assert repr(here[0]) == "PixelAccumulator(3 updates)"  # unchanged by merging


def test_merge_rejects_other_classes(data):
    maps, masks = data
    pixel, image = PixelAccumulator(), ImageAccumulator()
    pixel.update(maps, masks)
    image.update([0.1, 0.2], [0, 1])
    message = "^others must be of class PixelAccumulator, but got ImageAccumulator$"
    for wrong in (image, [pixel, image]):
        with pytest.raises(ConfigError, match=message):
            pixel.merge(wrong)
    for wrong in (3, [3], None):
        with pytest.raises(ConfigError, match="others must be"):
            pixel.merge(wrong)
    assert pixel.compute() == pixel_metrics(maps, masks)
    pixel.merge([])
    assert repr(pixel) == "PixelAccumulator(1 updates)"


def test_accumulators_copy_scores(data):
    maps, masks = data
    expected = pixel_metrics(maps, masks)
    accumulator = PixelAccumulator()
    buffer, mask_buffer = torch.empty_like(maps[:1]), torch.empty_like(masks[:1])
    for i in range(len(maps)):  # one buffer, overwritten for every image
        buffer.copy_(maps[i : i + 1])
        mask_buffer.copy_(masks[i : i + 1])
        accumulator.update(buffer, mask_buffer)
    assert accumulator.compute() == pytest.approx(expected, abs=1e-12)


def test_accumulators_require_both_kinds():
    image, pixel = ImageAccumulator(), PixelAccumulator()
    with pytest.raises(ShapeError, match=r"labels must have .* got 0 normal and 0 anomalous"):
        image.compute()
    image.update([0.1, 0.2], [0, 0])
    pixel.update(np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool))
    with pytest.raises(ShapeError, match=r"labels must have .* got 2 normal and 0 anomalous"):
        image.compute()
    with pytest.raises(ShapeError, match=r"anomaly_masks must have .* got 18 normal and 0 anomalous"):
        pixel.compute()
    with pytest.raises(ConfigError, match="fpr_limit"):
        pixel.compute(fpr_limit=2.0)


def test_rejected_batch_does_not_change_the_state(data):
    maps, masks = data
    pixel = PixelAccumulator()
    pixel.update(maps, masks)
    with pytest.raises(ShapeError, match="NaN"):
        pixel.update(maps * torch.nan, masks)
    assert pixel.compute() == pixel_metrics(maps, masks)


def test_accumulators_accept_changing_types_and_sizes():
    image = ImageAccumulator()
    image.update(torch.tensor([1, 4]), torch.tensor([0, 1]))
    image.update(np.float32(2.5), 1)
    image.update(torch.tensor([3.0], dtype=torch.bfloat16), [0])
    assert image.compute() == image_metrics([1, 4, 2.5, 3], [0, 1, 1, 0])
    pixel = PixelAccumulator()
    pixel.update(np.array([[1.0, 2.0]]), torch.tensor([[0, 1]]))
    pixel.update(np.array([[[3.0], [0.5]]]), np.array([[[1], [0]]]))
    expected = pixel_metrics(
        [np.array([[1.0, 2.0]]), np.array([[3.0], [0.5]])], [np.eye(2)[:1] == 0, np.eye(2)[:, :1] == 1]
    )
    assert pixel.compute() == expected
    assert repr(pixel) == "PixelAccumulator(2 updates)"
