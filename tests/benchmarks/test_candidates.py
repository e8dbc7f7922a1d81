"""The densities and losses of published ideas, and the command that compares them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.candidates import __main__ as candidates
from benchmarks.candidates import residuals, training, vqflow
from benchmarks.candidates.hgad import INTRA, ClassMixture, MixtureFlow
from benchmarks.candidates.plain import PlainFlow
from benchmarks.candidates.residuals import ResidualFlow, ResidualGaussian
from benchmarks.candidates.synthetic import VARIANCE, SyntheticFlow
from benchmarks.candidates.tarflow import TransformerFlow
from benchmarks.candidates.uflow import UShapedFlow
from benchmarks.candidates.vqflow import Codebook, CodebookFlow
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from semflow.functional import nearest

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


def around(mean: float, scale: int) -> Independent:
    return normal(torch.full((CHANNELS[scale],), mean, dtype=torch.float64), VARIANCE**0.5)


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
        (TransformerFlow, lambda model, scale, maps: normal(torch.zeros(CHANNELS[scale], dtype=torch.float64))),
        (lambda channels: SyntheticFlow(channels, "BCE"), lambda model, scale, maps: around(0.0, scale)),
    ],
    ids=["plain", "HGAD", "VQ-Flow", "TarFlow", "BCE"],
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


def test_u_shaped_flow_has_the_density_of_all_scales_and_an_inverse() -> None:
    channels, sizes = (3, 10, 12), (4, 2, 1)
    model = UShapedFlow(channels).double()
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, c, s, s) for c, s in zip(channels, sizes, strict=True)]
    maps = [3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    model.prepare(maps, torch.zeros(2))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    maps = [x[:1] for x in maps]
    lengths = [x.numel() for x in maps]

    def latents(flat: Tensor) -> Tensor:
        split = [part.view(x.shape) for part, x in zip(flat.split(lengths), maps, strict=True)]
        return torch.cat([z.flatten() for z, _ in model.encode(split)])

    whole = torch.cat([x.flatten() for x in maps])
    expected = normal(torch.zeros_like(whole)).log_prob(latents(whole)) + log_det(latents, whole)
    found = model.log_probs(maps)
    torch.testing.assert_close(sum(x.sum() for x in found), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.nll(found), -expected / len(whole))
    assert [z.shape[1] for z, _ in model.encode(maps)] == model.widths
    for x, back in zip(maps, model.decode([z for z, _ in model.encode(maps)]), strict=True):
        torch.testing.assert_close(back, x)


def test_transformer_flow_inverts_and_sees_earlier_locations_only() -> None:
    torch.manual_seed(0)
    model = perturbed(TransformerFlow(CHANNELS))
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(2, c, 3, 2, generator=generator, dtype=torch.float64) for c in CHANNELS]
    for x, back in zip(maps, model.decode([z for z, _ in model.encode(maps)]), strict=True):
        torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)  # each location amplifies the errors before it
    for block in model.flows[0]:
        x = maps[0].flatten(2).transpose(1, 2)
        jacobian = torch.autograd.functional.jacobian(lambda x, block=block: block(x, model.places(maps[0]))[0], x)
        seen = jacobian.abs().amax((0, 2, 3, 5)) > 0  # (location of z, location of x)
        assert torch.equal(seen, torch.ones(6, 6).tril().bool().flip((0, 1)) if block.backward else seen.tril())
        assert seen.sum() == 21


def test_cross_entropy_and_likelihood_are_those_of_two_normals() -> None:
    model, maps = perturbed(SyntheticFlow(CHANNELS, "BCE")), maps_of(2, seed=5)
    masks = torch.zeros(2, 16, 16)
    masks[1, :, 8:] = 1
    expected = torch.zeros((), dtype=torch.float64)
    for scale, (z, log_det) in enumerate(model.encode(maps)):
        at, ignored = torch.zeros(log_det.shape).bool(), torch.zeros(log_det.shape).bool()
        at[1, :, SIZES[scale] // 2 :], ignored[1, :, : SIZES[scale] // 2] = True, True
        usual, unusual = (around(mean, scale).log_prob(z.movedim(1, -1)) for mean in (0.0, 1.0))
        chance = Bernoulli(logits=(usual - unusual) / CHANNELS[scale])
        each = -(torch.where(at, unusual, usual) + log_det) / CHANNELS[scale] - chance.log_prob((~at).double())
        expected += each[~ignored].mean()
    torch.testing.assert_close(model.loss(maps, torch.zeros(2), masks), expected)


def test_boundary_loss_is_added_to_the_likelihood_of_normal_locations() -> None:
    model, maps = perturbed(SyntheticFlow(CHANNELS, "boundary")), maps_of(2, seed=5)
    masks = torch.zeros(2, 16, 16)
    masks[1] = 1
    expected = torch.zeros((), dtype=torch.float64)
    for scale, log_p in enumerate(model.log_probs(maps)):
        usual, unusual = log_p / CHANNELS[scale]
        boundary = usual.flatten().sort().values[int(0.05 * usual.numel())] / 10
        below, above = boundary - usual / 10, unusual / 10 - boundary + 0.1
        expected += -usual.mean() + sum(x[x > 0].mean() if (x > 0).any() else 0.0 for x in (below, above))
    torch.testing.assert_close(model.loss(maps, torch.zeros(2), masks), expected)
    assert not torch.equal(model.loss(maps, torch.zeros(2), masks), model.loss(maps, torch.zeros(2)))


def test_second_half_of_a_batch_has_synthetic_anomalies(categories: Path) -> None:
    _, train, _ = training.read(categories, 64)
    copies = training.Copies(train, "CutPaste")
    count = len(train["dark"].labels)
    rows = [0, 1, 2, count]  # the last is the first of the second category
    whole = [torch.cat((dark, light)) for dark, light in zip(train["dark"].maps, train["light"].maps, strict=True)]
    batch = [x[rows] for x in whole]
    masks = copies.enter(batch, rows, np.random.default_rng(0))
    assert (masks.flatten(1).any(1) == torch.tensor([False, False, True, True])).all()
    for x, all_maps, dark, light in zip(
        batch, whole, *(part.made["CutPaste"].maps for part in train.values()), strict=True
    ):
        assert torch.equal(x[:2], all_maps[rows[:2]])
        assert any(torch.equal(x[2], dark[2 + count * copy]) for copy in range(training.COPIES))
        assert any(torch.equal(x[3], light[len(light) // training.COPIES * copy]) for copy in range(training.COPIES))


def test_residuals_are_those_of_a_search_of_all_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residuals, "STORED", 6)
    model, maps, labels = ResidualFlow(CHANNELS).double(), maps_of(5), torch.tensor([0, 0, 0, 1, 1])
    trained = model.prepare(maps, labels)
    others = maps_of(2, seed=4)
    for scale, (x, stored, images) in enumerate(zip(maps, model.stored, model.images, strict=True)):
        counts = [(labels[images] == label).sum() for label in (0, 1)]
        assert counts == [min(6, n * SIZES[scale] ** 2) for n in (3, 2)]
        for given, found, own in ((x, trained[scale], True), (others[scale], model.seen(others)[scale], False)):
            for image, row, column in np.ndindex(len(given), *given.shape[2:]):
                vector = given[image, :, row, column]
                distances = (stored - vector).square().sum(1)
                if own:
                    distances[images == image] = torch.inf
                torch.testing.assert_close(found[image, :, row, column], vector - stored[distances.argmin()])
    model.refer([x[:1] for x in others])
    assert all((x == 0).all() for x in model.seen([x[:1] for x in others]))


def test_density_of_residuals_is_that_of_the_jacobian() -> None:
    model = ResidualFlow(CHANNELS).double()
    model.prepare(maps_of(12), torch.arange(12) % 3)
    maps = maps_of(1, seed=2)

    def latents(flat: Tensor) -> Tensor:
        _, rows = nearest(flat[None], model.stored[1])
        residual = flat - model.stored[1][rows[0, 0]]
        return model.encode([maps[0], residual.view(1, -1, 1, 1)])[1][0].flatten()

    flat = maps[1].flatten()
    expected = normal(torch.zeros_like(flat)).log_prob(latents(flat)) + log_det(latents, flat)
    torch.testing.assert_close(model.log_probs(model.seen(maps))[1].sum(), expected)


def test_gaussian_of_residuals_has_their_moments() -> None:
    model = ResidualGaussian(CHANNELS).double()
    for scale, x in enumerate(model.prepare(maps_of(12), torch.arange(12) % 3)):
        vectors = x.movedim(1, -1)
        expected = normal(vectors.mean((0, 1, 2)), vectors.std((0, 1, 2), correction=0)).log_prob(vectors)
        torch.testing.assert_close(model.log_probs(model.residuals(maps_of(12), torch.arange(12)))[scale], expected)


def test_command_measures_every_row_once(
    categories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(candidates, "SIZE", 64)
    file = tmp_path / "candidates.json"
    words = ["--data", str(categories), "--seeds", "0", "--steps", "1", "--json", str(file)]
    assert candidates.main(words) == 0
    results = json.loads(file.read_text("utf-8"))["results"]
    assert {row: tuple(kinds) for row, kinds in results.items()} == candidates.ROWS
    cells = [cells["0"] for kinds in results.values() for cells in kinds.values()]
    assert all(cell["categories"].keys() == {"dark", "light"} for cell in cells)
    first = [cell["categories"]["dark"]["image_auroc"] for cell in cells]
    assert all(0 <= value <= 1 for value in first)
    before = capsys.readouterr().out.splitlines()[-2 - len(cells) :]
    assert len([line for line in before if "(+0.0) " in line or "(-" in line or "(+" in line]) == len(cells) - 2
    monkeypatch.setattr(training, "measure", None)  # finished cells are kept
    assert candidates.main(words) == 0
    assert capsys.readouterr().out.splitlines() == before


def test_training_lowers_the_loss_and_repeats(categories: Path) -> None:
    channels, train, _ = training.read(categories, 64)

    def nll(steps: int) -> float:
        model, _ = training.trained(lambda: PlainFlow(channels), train, steps, seed=0)
        return float(model.loss(train["dark"].maps, torch.zeros(3)).detach())

    first = nll(3)
    assert first < nll(1)
    assert first == nll(3)
