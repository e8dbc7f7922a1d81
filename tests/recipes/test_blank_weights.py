"""Loading a detector draws no weights that it replaces, and gives the same detector as if it did."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.recipe_cases import ALL, images, small, stack
from semflow.detectors import Detector
from semflow.features import TimmFeatures
from semflow.flows import SoftPermutation
from semflow.recipes import RECIPES, load, recipe, save, storage


def tensors(detector: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(detector.named_parameters()), **dict(detector.named_buffers())}  # also those that are not saved


@pytest.mark.parametrize("name", ALL)
def test_detector_is_the_same_as_with_drawn_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small(name, {"seed": 3})
    batch = stack(images(5))
    detector.prepare([batch])
    detector.fit_base([batch])
    detector.fit_score([batch])
    save(detector, tmp_path)
    state = torch.random.get_rng_state()
    quick = load(tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())
    with monkeypatch.context() as patched:
        patched.setattr(storage, "blank_weights", nullcontext)
        drawn = load(tmp_path)
    for other in (drawn, detector):
        assert tensors(quick).keys() == tensors(other).keys()
        for key, x in tensors(quick).items():
            assert torch.equal(x, tensors(other)[key]), key
            assert x.stride() == tensors(drawn)[key].stride(), key
        for found, expected in zip(quick.predict(batch)[:2], other.predict(batch)[:2], strict=True):
            assert torch.equal(found, expected)


def test_recipe_of_others_may_draw_what_it_does_not_save(tmp_path: Path) -> None:
    class Shuffled(nn.Module):
        def __init__(self, features: TimmFeatures) -> None:
            super().__init__()
            self.features, self.channels, self.strides = features, features.channels, features.strides
            self.order = torch.randperm(features.channels[0]).tolist()

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [m[:, self.order] for m in self.features(x)]

    @recipe
    def shuffled(seed: int = 0) -> Detector:
        from semflow.bases import StandardNormal
        from semflow.flows import coupling_stack

        features = TimmFeatures("test_efficientnet", "random", (8,), seed=seed)
        flow = coupling_stack(features.channels[0], 2)
        return Detector(Shuffled(features), [flow], StandardNormal())

    try:
        detector = shuffled(seed=2)
        batch = stack(images(2))
        assert torch.equal(load(save(detector, tmp_path)).predict(batch).score, detector.predict(batch).score)
    finally:
        del RECIPES["shuffled"]


def test_drawing_is_left_out_in_the_block_alone() -> None:
    from semflow._defaults import blank_weights

    with blank_weights():
        layer, flow = nn.Linear(3, 3), SoftPermutation(3)
        buffer = torch.empty(3).uniform_()
    assert not layer.weight.any()
    assert torch.equal(flow.matrix, torch.eye(3))
    assert buffer.any()
    assert nn.Linear(3, 3).weight.any()
    assert not torch.equal(SoftPermutation(3).matrix, torch.eye(3))
