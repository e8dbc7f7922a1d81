"""Accumulators give what the functions give, however the data came in."""

import pickle

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
def test_batches_do_not_matter(data, sizes):
    maps, masks = data
    scores, labels = maps.amax((1, 2)), masks.any(2).any(1)
    image, pixel = ImageAccumulator(), PixelAccumulator()
    for s, label, m, mask in zip(*(x.split(sizes) for x in (scores, labels, maps, masks)), strict=True):
        image.update(s, label)
        pixel.update(m, mask)
    assert image.compute() == image_metrics(scores, labels)
    assert pixel.compute() == pytest.approx(pixel_metrics(maps, masks), abs=1e-12)
    assert pixel.compute(fpr_limit=0.05) == pytest.approx(pixel_metrics(maps, masks, 0.05), abs=1e-12)
    assert pixel.compute() == pixel.compute()  # computing changes nothing


def test_merge_and_reset(data):
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


def test_kept_scores_are_copies(data):
    maps, masks = data
    expected = pixel_metrics(maps, masks)
    accumulator = PixelAccumulator()
    buffer, mask_buffer = torch.empty_like(maps[:1]), torch.empty_like(masks[:1])
    for i in range(len(maps)):  # one buffer, written again for every image
        buffer.copy_(maps[i : i + 1])
        mask_buffer.copy_(masks[i : i + 1])
        accumulator.update(buffer, mask_buffer)
    assert accumulator.compute() == pytest.approx(expected, abs=1e-12)


def test_one_kind_only():
    image, pixel = ImageAccumulator(), PixelAccumulator()
    with pytest.raises(ShapeError, match=r"labels: .* got 0 normal and 0 anomalous"):
        image.compute()
    image.update([0.1, 0.2], [0, 0])
    pixel.update(np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool))
    with pytest.raises(ShapeError, match=r"labels: .* got 2 normal and 0 anomalous"):
        image.compute()
    with pytest.raises(ShapeError, match=r"anomaly_masks: .* got 18 normal and 0 anomalous"):
        pixel.compute()
    with pytest.raises(ConfigError, match="fpr_limit"):
        pixel.compute(fpr_limit=2.0)


def test_a_refused_batch_leaves_no_trace(data):
    maps, masks = data
    pixel = PixelAccumulator()
    pixel.update(maps, masks)
    with pytest.raises(ShapeError, match="NaN"):
        pixel.update(maps * torch.nan, masks)
    assert pixel.compute() == pixel_metrics(maps, masks)


def test_types_and_sizes_may_change_between_batches():
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
