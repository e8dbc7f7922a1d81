"""`torch.compile` as one graph: `predict` and the loss of every recipe, on the CPU and for a GPU that is not there."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.emulated_cuda import CUDA, cuda_guard
from helpers.recipe_cases import ALL, FITTED, fitted, images, small, stack
from semflow.detectors import Detector
from semflow.synthesis import CutPaste, SyntheticAnomalies

COMPILE = {"fullgraph": True, "backend": "aot_eager"}  # an error instead of a graph break
NAMES = [pytest.param(name, marks=() if name == "padim" else pytest.mark.slow) for name in ALL]
SAMPLES = [SyntheticAnomalies(images(3), CutPaste(), seed=1)[i] for i in range(3)]
GIVEN, MASKS = stack(SAMPLES), torch.stack([s.anomaly_mask for s in SAMPLES])


@pytest.fixture(autouse=True)
def forget() -> None:
    torch._dynamo.reset()


def masks_of(detector: Detector) -> Tensor | None:
    return None if detector.provenance.synthesis is None else MASKS


@pytest.mark.parametrize("name", NAMES)
def test_predict_is_one_graph_with_the_same_results(name: str) -> None:
    detector = copy.deepcopy(fitted(name))
    expected, found = detector.predict(GIVEN), torch.compile(detector.predict, **COMPILE)(GIVEN)
    torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.is_anomalous, expected.is_anomalous)


@pytest.mark.parametrize("name", [name for name in NAMES if name.values[0] not in FITTED])
def test_loss_is_one_graph_with_the_same_gradients(name: str) -> None:
    detector = small(name).train()
    exact, again = copy.deepcopy(detector), copy.deepcopy(detector)  # batch norms change with each pass
    expected = exact.loss(GIVEN, masks_of(detector)).total
    expected.backward()
    found = torch.compile(again.loss, **COMPILE)(GIVEN, masks_of(detector)).total
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for p, q in zip(again.trainable(), exact.trainable(), strict=True):
        if p.grad is not None or q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_graphs_for_a_gpu_hold_no_tensor_of_the_host(name: str) -> None:
    detector = copy.deepcopy(fitted(name)).requires_grad_(False)  # autograd has no streams in a build without CUDA
    with cuda_guard(), FakeTensorMode(), torch.no_grad():
        for module in detector.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({key: faked(x) for key, x in tensors.items() if x is not None})
        given, masks = faked(GIVEN), masks_of(detector)
        found = torch.compile(detector.predict, **COMPILE)(given)
        assert {x.device for x in (*found[:2], *found[2], *found[3:])} == {CUDA}
        if name not in FITTED:
            loss = torch.compile(detector.train().loss, **COMPILE)
            assert {x.device for x in loss(given, masks if masks is None else faked(masks))} == {CUDA}


def faked(x: Tensor) -> Tensor:
    made = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=CUDA)
    return nn.Parameter(made, requires_grad=False) if isinstance(x, nn.Parameter) else made
