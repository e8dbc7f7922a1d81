"""with_memory: a memory under flows of this and other libraries, compared with distances computed by hand."""

import pytest
import torch
from torch import nn
from torch.distributions.transforms import AffineTransform

import semflow
from semflow.adapters import CallableFlow, with_memory, with_statistics
from semflow.bases import Memory, SemanticGaussian, StandardNormal
from semflow.errors import ConfigError, ShapeError
from semflow.flows import Standardize, coupling_stack
from semflow.nn import FixedVariance, InverseGammaVariance, SinusoidalPosition2d, StatisticsNetwork

C = 6


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def foreign(name: str):
    """Return a flow of a library."""
    scale = noise(C, seed=2).exp()
    if name == "torch":
        return AffineTransform(nn.Parameter(noise(C, seed=1)), nn.Parameter(scale))
    if name == "callable":
        return CallableFlow(lambda x: (x * scale, scale.log().sum().expand(len(x))), "location", inverse=len)
    if name == "FrEIA":
        freia = pytest.importorskip("FrEIA.framework")
        inn = freia.SequenceINN(C)
        inn.append(pytest.importorskip("FrEIA.modules").ActNorm)
        return inn
    zuko = pytest.importorskip("zuko")
    return zuko.flows.MAF(features=C, transforms=1, hidden_features=(8,))


@pytest.mark.parametrize("name", ["torch", "callable", "FrEIA", "zuko"])
def test_map_is_the_distance_to_the_nearest_latent(name) -> None:
    normal, test = noise(5, C, 4, 3), 2 * noise(2, C, 4, 3, seed=3)
    flow = foreign(name)
    model = with_memory(flow, Memory("distance"))
    model.remember([normal[:2], normal[2:]])
    with torch.no_grad():
        stored, z = (semflow.as_flow(flow).eval()(x)[0].movedim(1, -1).reshape(-1, C).double() for x in (normal, test))
    expected = torch.cdist(z, stored).amin(1).view(2, 4, 3).float()
    torch.testing.assert_close(model.anomaly_map(test), expected, rtol=1e-4, atol=1e-4)


def test_density_has_the_log_det_unless_it_is_left_out() -> None:
    flow = Standardize(C)
    flow.std.fill_(0.5)
    model = with_memory(flow, Memory())
    model.remember([noise(5, C, 4, 3)])
    test = noise(2, C, 4, 3, seed=3)
    shift = (model.anomaly_map(test, log_det=False) - model.anomaly_map(test)).mean()
    assert shift.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)
    without = with_memory(flow, Memory(), log_det=False)
    without.remember([noise(5, C, 4, 3)])
    assert torch.equal(without.anomaly_map(test), model.anomaly_map(test, log_det=False))


def test_each_scale_has_its_own_memory() -> None:
    maps = [noise(4, C, 4, 4), noise(4, C, 2, 2, seed=1)]
    model = with_memory([coupling_stack(C, 2), coupling_stack(C, 2)], Memory("distance", size=8))
    model.remember([maps])
    assert [base.vectors.shape for base in model.bases] == [(8, C), (8, C)]
    assert not torch.equal(model.bases[0].vectors, model.bases[1].vectors)
    assert model.anomaly_map(maps).shape == (4, 4, 4)
    assert with_memory([coupling_stack(C, 2)]).bases[0].size == 8000


def test_sample_flow_and_context() -> None:
    position = SinusoidalPosition2d(8)(4, 4)
    conditional = with_memory(coupling_stack(C, 2, context_channels=8), Memory("distance"))
    conditional.remember([noise(3, C, 4, 4)], context=position)
    known = conditional.anomaly_map(noise(3, C, 4, 4), context=position)
    torch.testing.assert_close(known, torch.zeros_like(known), rtol=0, atol=1e-3)


def test_model_with_statistics_keeps_head_and_loss() -> None:
    head = InverseGammaVariance(StatisticsNetwork(stride=4, filters=8))
    model = with_statistics(coupling_stack(C, 2), head)
    features, image, mask = noise(2, C, 4, 4), torch.rand(2, 3, 16, 16), torch.ones(2, 16, 16)
    model.eval()
    before = model.loss(features, image=image, anomaly_mask=mask)
    assert with_memory(model, Memory("kernel")) is model
    model.remember([features])
    assert torch.equal(model.loss(features, image=image, anomaly_mask=mask).total, before.total)
    assert isinstance(model.training_base(0), SemanticGaussian)
    assert model.anomaly_map(features, image=image).shape == (2, 16, 16)


def test_prior_of_a_bare_flow_is_that_of_the_memory() -> None:
    fixed = with_statistics(coupling_stack(C, 2), FixedVariance(0.3))
    assert isinstance(with_memory(fixed, Memory()).training_base(0), SemanticGaussian)
    assert isinstance(with_memory(coupling_stack(C, 2)).training_base(0), StandardNormal)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="memory must be of class FittedBase, but got"):
        with_memory(coupling_stack(C, 2), [StandardNormal()])
    with pytest.raises(ConfigError, match="base must be a memory to remember features, but got Standard"):
        with_statistics(coupling_stack(C, 2), None).remember([noise(2, C, 4, 4)])
    model = with_memory(coupling_stack(C, 2))
    with pytest.raises(ShapeError, match="batches must be a list of features, but got a tensor"):
        model.remember(noise(2, C, 4, 4))
    with pytest.raises(ConfigError, match="memory must be fitted before use"):
        model.anomaly_map(noise(2, C, 4, 4))
