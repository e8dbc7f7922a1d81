"""A small detector with memories as its bases in every format."""

from importlib.util import find_spec

import pytest
import torch

from helpers.export_cases import PACKAGES, SIZE, Pyramid, pictures
from semflow.app.export import load, save, saving
from semflow.app.export.graph import DetectorGraph
from semflow.app.export.runtime import SUFFIXES
from semflow.bases import Memory
from semflow.detectors import Detector, Provenance, Scorer
from semflow.features import FrozenFeatures
from semflow.flows import AffineCoupling, FlowSequence, Standardize
from semflow.nn import InverseGammaVariance, StatisticsNetwork

WRITABLE = [name for name in SUFFIXES if all(find_spec(package) for package in PACKAGES[name])]


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


@pytest.mark.slow
@pytest.mark.parametrize("case", ["densities", "distances", "statistics"])
def test_exported_memory_has_the_results_of_the_detector(case, tmp_path, monkeypatch):
    bases = {
        "densities": lambda: [Memory("nearest", neighbors=2, chunk_bytes=2**15), Memory("kernel", chunk_bytes=2**15)],
        "distances": lambda: [Memory("distance", size=100, image_neighbors=9), Memory("distance")],
        "statistics": lambda: [Memory("kernel", variance_form="marginal"), Memory("kernel", size=50)],
    }
    detector = detector_with(bases[case](), case == "statistics")
    program = saving.trace(DetectorGraph(detector.requires_grad_(False)))
    monkeypatch.setattr(saving, "trace", lambda graph: program)  # shared by all formats
    images = pictures(SIZE, 5, seed=6)
    expected = detector.predict(images.float() / 255)
    assert expected.score.std() > 0.01
    for format in WRITABLE:
        exported = load(save(detector, tmp_path / f"own{SUFFIXES[format]}").path)
        # The logarithm of a small distance amplifies rounding in the latents.
        for got, count in ((exported.predict(images), 5), (exported.predict(images[:1]), 1)):
            torch.testing.assert_close(got.score, expected.score[:count], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(got.anomaly_map, expected.anomaly_map[:count], rtol=1e-4, atol=1e-4)
