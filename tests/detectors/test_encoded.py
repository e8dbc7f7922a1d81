"""Latents that are computed once for several passes."""

import pytest
import torch

from helpers.fitted_base import make_fitted
from semflow.bases import Memory
from semflow.detectors import NormalBatch
from semflow.detectors.encoded import Encoded


def fitted(limit, region=None, maps=True):
    """Return a fitted detector, its normal scores, and the number of images that the flows have mapped."""
    detector = make_fitted(0, trained=True).eval()
    detector.set_base([Memory(size=20), Memory("kernel")])
    detector.set_region(region)
    mapped = []
    detector.flows.register_forward_hook(lambda flows, given, found: mapped.append(len(given[0][0])))
    images = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    parts = zip(images.split(3), torch.arange(7).split(3), strict=True)
    batches = [NormalBatch(x, detector.feature_maps(x) if maps else None, index) for x, index in parts]
    given = batches if limit is None else Encoded(detector, batches, limit)
    detector.fit_base(given)
    return detector, detector.fit_score(given), sum(mapped)


@pytest.mark.parametrize("region", [None, torch.ones(32, 32).tril() > 0])
@pytest.mark.parametrize(
    ("limit", "maps", "mapped"), [(2**28, True, 7), (1, True, 17), (0, True, 14), (2**28, False, 14)]
)
def test_fitted_detector_is_the_same(limit, maps, mapped, region) -> None:
    """Without room for all latents, those of the first batch have been computed in vain."""
    detector, scores, count = fitted(limit, region, maps)
    plain, expected, twice = fitted(None, region)
    assert (count, twice) == (mapped, 14)
    assert torch.equal(scores.scores, expected.scores)
    state = plain.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in detector.state_dict().items())


def test_latents_are_kept_for_all_batches_or_for_none() -> None:
    detector = make_fitted(0, trained=True).eval()
    batches = [NormalBatch(x, detector.feature_maps(x)) for x in torch.rand(6, 3, 32, 32).split(2)]
    one = sum(x.nbytes for scale in detector.encode_maps(batches[0].maps) for x in (scale.z, scale.log_det))
    for limit, known in ((3 * one + 1, [True] * 3), (3 * one, [True, True, False]), (one, [False] * 3)):
        found = Encoded(detector, batches, limit)
        assert [batch.latents is not None for batch in found] == known
        assert [batch.latents is not None for batch in found] == [all(known)] * 3
