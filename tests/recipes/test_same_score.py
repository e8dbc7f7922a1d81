"""Every recipe gives an image the same score alone, in any batch, in any order and after loading."""

import pytest
import torch

from helpers.recipe_cases import WITH_AND_WITHOUT, images, small, stack
from semflow.training.checkpoint import load_into, save_model

# float32 keeps a log-density near one nat per dimension to 1e-7, so a score near 0 cannot be had to 1e-6 of itself.
CLOSE = {"rtol": 1e-6, "atol": 2e-7}
# Single pixels are not averaged.
PIXEL = {"rtol": 2e-6, "atol": 1e-6}


def perturbed(name: str, settings: dict):
    """Return a detector with weights as far from their start as after training, with scores of 0.01 to 10."""
    detector = small(name, settings)
    detector.prepare([stack(images(8))])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in detector.trainable():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    detector.fit_score([stack(images(8))])
    detector.calibrate([stack(images(9, seed=2))], 0.1)
    return detector


@pytest.mark.parametrize(("name", "settings"), WITH_AND_WITHOUT)
def test_image_has_one_score(name, settings, tmp_path, record_property) -> None:
    detector = perturbed(name, settings)
    batch = stack(images(9, seed=1))
    together = detector.predict(batch)
    assert together.score.unique().numel() == 9
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    groups = [order] + [part for size in (1, 2, 4, 7) for part in torch.arange(9).split(size)]
    largest = 0.0
    for group in groups:
        found = detector.predict(batch[group])
        difference = (found.score - together.score[group]).abs() / together.score[group].abs().clamp_min(1)
        largest = max(largest, float(difference.max()))
        torch.testing.assert_close(found.score, together.score[group], **CLOSE)
        torch.testing.assert_close(found.anomaly_map, together.anomaly_map[group], **PIXEL)
        assert torch.equal(found.p_value, together.p_value[group])
        assert torch.equal(found.is_anomalous, together.is_anomalous[group])
    save_model(detector, tmp_path)
    again = small(name, {**settings, "seed": 5})
    reloaded = load_into(again, tmp_path).predict(batch)
    for a, b in zip(reloaded[:2] + reloaded[3:], together[:2] + together[3:], strict=True):
        assert torch.equal(a, b)
    record_property("recipe", name)
    record_property("difference", largest)
