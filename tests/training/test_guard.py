"""Locations beside an anomaly, which training ignores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from semflow.bases import SemanticGaussian
from semflow.functional import border, mask_to_grid
from semflow.nn import Statistics
from semflow.objectives import Objective


@given(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=40)
def test_border_is_the_dilation_minus_the_mask(width, height, breadth, density, seed) -> None:
    mask = torch.rand(1, height, breadth, generator=torch.Generator().manual_seed(seed)) < density
    grown = ndimage.binary_dilation(mask[0].numpy(), torch.ones(2 * width + 1, 2 * width + 1).numpy())
    assert (border(mask, width)[0].numpy() == (grown & ~mask[0].numpy())).all()


def test_loss_is_unaffected_by_ignored_locations() -> None:
    torch.manual_seed(0)
    z, log_det = torch.randn(1, 6, 1, 8), torch.randn(1, 1, 8)
    alpha, beta, kl = torch.rand(1, 1, 1, 8) + 1, torch.rand(1, 1, 1, 8) + 1, torch.rand(1, 1, 8)
    mask = torch.tensor([[[0, 1, 0, 0, 1, 0, 0, 0]]]).bool()
    ignore = torch.tensor([[[1, 0, 0, 1, 0, 0, 0, 1]]]).bool()
    objective, base = Objective(), SemanticGaussian()
    kept = ~ignore[0, 0]
    alone = objective(
        z[..., kept],
        log_det[..., kept],
        "location",
        base,
        Statistics(beta[..., kept], alpha[..., kept], kl=kl[..., kept]),
        mask[..., kept],
    )
    spoiled = torch.where(ignore[:, None], torch.full_like(z, 1e3), z)
    together = objective(spoiled, log_det, "location", base, Statistics(beta, alpha, kl=kl), mask, ignore)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b)


def test_guard_ignores_the_border_of_a_patch(build, images) -> None:
    detector = build()
    batch = torch.stack([s.image for s in images[:1]])
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, 12:16, 12:16] = True  # location (3, 3) of the finer map

    seen = []
    call = Objective.__call__

    def spy(self, z, log_det, event, base, statistics, mask, ignore):
        seen.append((mask, ignore))
        return call(self, z, log_det, event, base, statistics, mask, ignore)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "__call__", spy)
        detector.loss(batch, masks, mask_resize="nearest", guard=1)
    fine_mask, fine_ignore = seen[0]
    assert torch.equal(fine_mask, mask_to_grid(masks, (8, 8)))
    assert fine_mask.sum() == 1
    assert fine_ignore.sum() == 8
    assert not (fine_ignore & fine_mask).any()
