"""A small detector with memories as its bases in every format."""

import pytest
import torch

from helpers.export_cases import FORMATS, SIZE, Pyramid, pictures
from semflow.app.export import load, save
from semflow.app.export.runtime import SUFFIXES
from semflow.bases import Memory
from semflow.detectors import Detector, Provenance, Scorer
from semflow.features import FrozenFeatures
from semflow.flows import AffineCoupling, FlowSequence, Standardize
from semflow.nn import InverseGammaVariance, StatisticsNetwork


def detector_with(bases, statistics=False):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        features = FrozenFeatures(Pyramid(), channels=(6, 8), strides=(4, 8))
        flows = [FlowSequence([Standardize(c), AffineCoupling(c)]) for c in features.channels]
        head = InverseGammaVariance(StatisticsNetwork(filters=8, stride=4)) if statistics else None
        detector = Detector(features, flows, bases, head, scorer=Scorer(2, aggregate="sum"), score_log_det=True).eval()
        detector.provenance = Provenance("own", image_size=SIZE)
        for parameter in detector.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))
    normal = pictures(SIZE, 12, seed=2, spoiled=0).float() / 255
    detector.prepare([normal])
    detector.fit_base([normal])
    detector.fit_score([normal])
    return detector


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("case", ["densities", "distances", "statistics"])
def test_exported_memory_has_the_results_of_the_detector(name, case, tmp_path):
    bases = {
        "densities": lambda: [Memory("nearest", neighbors=2, chunk_bytes=2**15), Memory("kernel", chunk_bytes=2**15)],
        "distances": lambda: [Memory("distance", size=100, image_neighbors=9), Memory("distance")],
        "statistics": lambda: [Memory("kernel", variance_form="marginal"), Memory("kernel", size=50)],
    }
    detector = detector_with(bases[case](), case == "statistics")
    made = save(detector, tmp_path / f"own{SUFFIXES[name]}")
    assert max(made.differences.values()) < 2e-5
    exported, images = load(made.path), pictures(SIZE, 5, seed=6)
    got, expected = exported.predict(images), detector.predict(images.float() / 255)
    assert expected.score.std() > 0.01
    torch.testing.assert_close(got.score, expected.score, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.anomaly_map, expected.anomaly_map, rtol=1e-5, atol=1e-5)
    alone = exported.predict(images[:1])
    torch.testing.assert_close(alone.score, got.score[:1], rtol=1e-5, atol=1e-5)
