"""Pixel metrics of any number of images in bounded memory."""

import numpy as np
import pytest
import torch

from semflow.data import Sample
from semflow.metrics import pixel_metrics
from semflow.training import ImageResult, pixels, summarize
from semflow.training.pixels import Pixels


def maps(count: int, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[::2, 4:12, 5:20] = True
    scores = torch.from_numpy(rng.normal(0, 1, masks.shape)).float() + masks.float() + offset
    return scores, masks


def test_few_pixels_are_exact() -> None:
    scores, masks = maps(20)
    some = Pixels()
    for score, mask in zip(scores, masks, strict=True):
        some.update(score, mask)
    whole = pixel_metrics(scores, masks)
    assert some.compute() == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("most", [100, 10**6])
def test_further_metrics_do_not_rank_the_pixels_again(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr(pixels, "EXACT", most)
    exact, counted = pixels.evaluate_pixels, pixels.HistogramAccumulator.compute
    monkeypatch.setattr(pixels, "evaluate_pixels", lambda parts, limit: limits.append(limit) or exact(parts, limit))
    monkeypatch.setattr(
        pixels.HistogramAccumulator, "compute", lambda self, limit: limits.append(limit) or counted(self, limit)
    )
    (scores, masks), some, fresh = maps(4), Pixels(), Pixels()
    some.update(scores[0], masks[0])
    found = some.compute(), some.compute(0.3, ("f1_max",)), some.compute(0.05)
    assert limits == [0.3, 0.05]
    assert found[0] == found[1] != found[2]
    for score, mask in zip(scores[1:], masks[1:], strict=True):
        fresh.update(score, mask)
    some.merge(fresh)
    assert some.compute() != found[0]


@pytest.mark.parametrize("split", [0, 7, 20])
def test_many_pixels_are_counted_and_not_kept(split: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "EXACT", 5000)
    scores, masks = maps(20)
    ours, others = Pixels(), Pixels()
    for k, (score, mask) in enumerate(zip(scores, masks, strict=True)):
        (ours if k < split else others).update(score, mask)
        assert sum(len(part.normal) + len(part.anomalous) for part in ours._parts) <= 5000
    ours.merge(others)
    assert not ours._parts
    whole = pixel_metrics(scores, masks)
    assert ours.compute() == pytest.approx(whole, abs=1e-3)


def test_coarse_histogram_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "EXACT", 100)
    scores, masks = maps(4, offset=1e5)  # a float's distance is 0.008 there, and a bin is wider
    some = Pixels()
    for score, mask in zip(scores, masks, strict=True):
        some.update(score, mask)
    with pytest.warns(UserWarning, match=r"pixel metrics are known to 0\.\d+ only"):
        some.compute()


def test_memory_of_a_summary_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "EXACT", 4096)
    most = 0
    update = Pixels.update

    def watched(self: Pixels, *given: torch.Tensor) -> None:
        nonlocal most
        update(self, *given)
        most = max(most, sum(len(part.normal) + len(part.anomalous) for part in self._parts))

    monkeypatch.setattr(Pixels, "update", watched)
    scores, masks = maps(30)
    images = torch.zeros(3, 1, 1)
    found = summarize(
        ImageResult(Sample(images, int(mask.any()), mask, "a.png"), float(score.max()), score)
        for score, mask in zip(scores, masks, strict=True)
    )
    assert most <= 4096
    assert found.pixel_auroc == pytest.approx(pixel_metrics(scores, masks).auroc, abs=1e-3)
