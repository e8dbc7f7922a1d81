"""A detector whose bases are fitted in one pass, with a blurred map and weights, in every format."""

import pytest
import torch

from helpers.export_cases import FORMATS, SIZE, pictures
from helpers.fitted_base import make_fitted
from helpers.small_detector import make_images
from semflow.app.export import load, save
from semflow.app.export.runtime import SUFFIXES
from semflow.detectors import Scorer
from semflow.training import fit


@pytest.mark.parametrize("name", FORMATS)
def test_results_equal_those_of_the_detector(name, tmp_path) -> None:
    detector = make_fitted()
    detector.scorer = Scorer(2, 0.0, "sum", interpolation="nearest", blur=1.5, weights=(0.5, 2.0))
    fit(detector, make_images(10), progress=False)
    exported = load(save(detector, tmp_path / f"model{SUFFIXES[name]}").path)
    images = pictures(SIZE, 6, seed=6).float() / 255
    expected, found = detector.predict(images), exported.predict(images)
    assert found.score.std() > 0.1
    for field in ("score", "anomaly_map"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-3, atol=1e-3)
