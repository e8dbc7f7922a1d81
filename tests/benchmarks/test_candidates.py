"""The densities of the ideas that are not in the library, and the command that compares them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.candidates import __main__ as candidates
from benchmarks.candidates import vqflow
from benchmarks.candidates.hgad import INTRA, ClassMixture, MixtureFlow
from benchmarks.candidates.plain import PlainFlow
from benchmarks.candidates.vqflow import Codebook, CodebookFlow
from PIL import Image
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

CHANNELS, SIZES = [4, 8], [2, 1]


def maps_of(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = zip(CHANNELS, SIZES, strict=True)
    return [3 + 2 * torch.randn(count, c, s, s, generator=generator, dtype=torch.float64) for c, s in sizes]


def perturbed(model: PlainFlow) -> PlainFlow:
    """Return a prepared model in float64 whose weights are far from their start."""
    model = model.double()
    model.prepare(maps_of(12), torch.arange(12) % 3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model.eval()


def log_det(function, x: Tensor) -> Tensor:
    """Return log |det| of the Jacobian of a function of one vector, by autograd."""
    return torch.linalg.slogdet(torch.autograd.functional.jacobian(function, x))[1]


def normal(mean: Tensor, scale: Tensor | float = 1.0) -> Independent:
    return Independent(Normal(mean, scale), 1)


def mixture(model: PlainFlow, scale: int, maps: list[Tensor]) -> MixtureSameFamily:
    found = model.mixtures[scale]
    return MixtureSameFamily(Categorical(logits=found.weights), normal(found.centers))


def predicted(model: PlainFlow, scale: int, maps: list[Tensor]) -> Independent:
    pooled = ((maps[-1] - model.flows[-1][0].mean[:, None, None]) / model.flows[-1][0].std[:, None, None]).mean((2, 3))
    row = (model.prototypes.codes - pooled).square().sum(1).argmin()
    means, scales = model.network(model.prototypes.codes[row]).chunk(2)
    mean, log_scale = (x.split(CHANNELS)[scale] for x in (means, scales.tanh()))
    return normal(mean, log_scale.exp())


@pytest.mark.parametrize(
    ("build", "base"),
    [
        (PlainFlow, lambda model, scale, maps: normal(torch.zeros(CHANNELS[scale], dtype=torch.float64))),
        (lambda channels: MixtureFlow(channels, 3, 1.0), mixture),
        (CodebookFlow, predicted),
    ],
    ids=["plain", "HGAD", "VQ-Flow"],
)
def test_density_is_that_of_base_and_jacobian(build, base) -> None:
    model = perturbed(build(CHANNELS))
    maps = maps_of(1, seed=2)
    found = model.log_probs(maps)
    for scale, x in enumerate(maps):

        def latents(flat: Tensor, scale: int = scale, x: Tensor = x) -> Tensor:
            return model.encode([*maps[:scale], flat.view(x.shape), *maps[scale + 1 :]])[scale][0].flatten()

        z = model.encode(maps)[scale][0]
        expected = base(model, scale, maps).log_prob(z.movedim(1, -1)).sum() + log_det(latents, x.flatten())
        torch.testing.assert_close(found[scale].sum(), expected, rtol=1e-9, atol=1e-9)


def test_centers_of_a_category_are_a_mixture_around_its_own() -> None:
    found = ClassMixture(3, 5).double()
    with torch.no_grad():
        for p in found.parameters():
            p += torch.randn_like(p)
    z = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    for image, label in enumerate((2, 0)):
        around = normal(found.centers[label] + found.offsets[label])
        assert around.batch_shape == (INTRA,)
        expected = MixtureSameFamily(Categorical(logits=found.intra_weights[label]), around)
        own = found.intra_log_prob(z, torch.tensor([2, 0]))[image]
        torch.testing.assert_close(own, expected.log_prob(z[image].movedim(0, -1)))
    found.intra_log_prob(z, torch.tensor([2, 0])).sum().backward()
    assert found.centers.grad is None


def test_mutual_information_is_that_of_the_posterior() -> None:
    model, maps, labels = perturbed(MixtureFlow(CHANNELS, 3, 0.0)), maps_of(4), torch.tensor([0, 2, 1, 1])
    without = model.loss(maps, labels)
    model.weight = 0.5
    expected = torch.zeros((), dtype=torch.float64)
    for scale, (z, _) in enumerate(model.encode(maps)):
        found, at = model.mixtures[scale], z.movedim(1, -1)
        each = torch.stack([normal(center).log_prob(at) for center in found.centers], -1) + found.weights.log_softmax(0)
        posterior = Categorical(logits=each)
        own = posterior.log_prob(labels[:, None, None].expand(at.shape[:-1]))
        expected += 0.5 * (0.01 * posterior.entropy() - own).mean()
    torch.testing.assert_close(model.loss(maps, labels) - without, expected)


def test_codes_follow_the_mean_of_their_vectors() -> None:
    book = Codebook(2, 1)
    book.start(torch.tensor([[0.0], [10.0]]))
    low, high = book.codes.flatten().sort().values
    vectors = torch.tensor([[1.0], [2.0], [9.0]])
    for _ in range(3000):
        book.follow(vectors, book.nearest(vectors))
    assert (low, high) == (0, 10)
    torch.testing.assert_close(book.codes.flatten().sort().values, torch.tensor([1.5, 9.0]), rtol=1e-3, atol=0.0)


def test_codes_follow_in_training_only() -> None:
    model, maps = perturbed(CodebookFlow(CHANNELS)), maps_of(4, seed=5)
    before = model.books[0].codes.clone()
    model.log_probs(maps)
    assert torch.equal(model.books[0].codes, before)
    model.loss(maps, torch.zeros(4))
    assert not torch.equal(model.books[0].codes, before)
    assert vqflow.DECAY < 1
