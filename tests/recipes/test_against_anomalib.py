"""PaDiM and PatchCore compared with anomalib's models on the same features."""

import os
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from helpers.recipe_cases import images, small, stack
from semflow.features.timm_module import load_timm
from semflow.training import fit

if find_spec("anomalib") is None:
    pytest.skip("needs anomalib, of semflow[peers]", allow_module_level=True)

GOOD, BATCH = stack(images(8)), stack(images(4, seed=1))


@pytest.fixture(scope="module")
def models():
    os.environ.setdefault("TQDM_DISABLE", "1")
    load_timm()  # first: it repairs a torchvision without operators, which anomalib imports
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.models.image.padim.torch_model import PadimModel
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    return PadimModel, PatchcoreModel


class Named(nn.Module):
    """Feature maps by name, as anomalib expects them."""

    def __init__(self, features) -> None:
        super().__init__()
        self.features = features

    def forward(self, batch):
        return {str(k): x for k, x in enumerate(self.features(batch))}


def with_features(model, backbone):
    model.feature_extractor, model.layers = Named(backbone), [str(k) for k in range(len(backbone.channels))]
    return model


def close(found, expected) -> None:
    """Assert a relative difference of at most 1e-5 of the largest value."""
    largest = expected.abs().max()
    torch.testing.assert_close(found / largest, expected / largest, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_padim_equals_that_of_anomalib(models, seed) -> None:
    detector = fit(small("padim", {"channels": 30, "shrinkage": 0.01001, "seed": seed}), images(8), progress=False)
    backbone = detector.features.features.features
    model = with_features(models[0]("resnet18", ["layer1"], pre_trained=False, n_features=1), backbone)
    torch.manual_seed(seed)
    model.idx = torch.randperm(sum(backbone.channels))[:30]  # as anomalib draws them
    with torch.no_grad():
        model.train()(GOOD)
        model.fit()
        found = model.eval()(BATCH)
    prediction = detector.predict(BATCH)
    close(prediction.anomaly_map, found.anomaly_map[:, 0])
    close(prediction.score, found.pred_score.flatten())


@pytest.mark.parametrize(("coreset", "neighbors"), [(0.1, 9), (0.02, 3), (40, 1), (1.0, 9)])
def test_patchcore_equals_that_of_anomalib_with_the_same_coreset(models, coreset, neighbors) -> None:
    settings = {"coreset": coreset, "image_neighbors": neighbors}
    detector = fit(small("patchcore", settings), images(8), progress=False)
    model = models[1](["layer1"], "resnet18", pre_trained=False, num_neighbors=neighbors)
    with_features(model, detector.features.features)
    model.memory_bank = detector.bases[0].vectors.clone()
    with torch.no_grad():
        found = model.eval()(BATCH)
    prediction = detector.predict(BATCH)
    close(prediction.anomaly_map, found.anomaly_map[:, 0])
    close(prediction.score, found.pred_score.flatten())


def test_patchcore_collects_the_patches_of_anomalib(models) -> None:
    detector = small("patchcore")
    model = with_features(models[1](["layer1"], "resnet18", pre_trained=False), detector.features.features)
    with torch.no_grad():
        expected = model.train()(GOOD)
        (found,) = detector.features(GOOD)
    close(found.permute(0, 2, 3, 1).reshape(expected.shape), expected)
