"""The memory of normal latents against brute force in float64."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.kernel_truths import Largest, kernel_density
from semflow.bases import Memory, SemanticNormal, StoredLatents
from semflow.bases import stored as stored_latents
from semflow.detectors import LikelihoodModel
from semflow.errors import CheckpointError, ConfigError, DataError, ShapeError
from semflow.flows import Identity
from semflow.functional.coreset import k_center
from semflow.nn import Statistics
from semflow.objectives import log_likelihood


def draw(seed, *shape, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def rows(z):
    return z.flatten(2).transpose(1, 2)


def stored(form, vectors, images=None, **options):
    base = Memory(form, **options).to(vectors.dtype)
    base.store(vectors, images)
    return base


def kth_distances(z, vectors, k, kept=None):
    """Distance to the k-th nearest vector from differences of float64 numbers, (B, H, W)."""
    d = (rows(z.double())[:, :, None] - vectors.double()).square().sum(3).sqrt()
    if kept is not None:
        d = d.masked_fill(~kept[:, None], torch.inf)
    return d.kthvalue(k, dim=2).values.view(z.shape[0], *z.shape[2:])


def test_density_integrates_to_one_in_one_dimension():
    vectors, x = draw(0, 30, 1), torch.linspace(-60, 60, 240001, dtype=torch.float64)
    log_prob = stored("kernel", vectors).log_prob(x.view(1, 1, 1, -1))
    assert torch.trapezoid(log_prob.exp()[0, 0], x).item() == pytest.approx(1, abs=1e-6)
    # A nearest-neighbor estimate is no normalized density: it is k / M over the volume of the ball up to the k-th one.
    base = stored("nearest", vectors, neighbors=3)
    d = kth_distances(x.view(1, 1, 1, -1), vectors, 3).clamp(min=base.floor.item())
    expected = torch.log(3 / 30 / (2 * d))
    torch.testing.assert_close(base.log_prob(x.view(1, 1, 1, -1)), expected, rtol=1e-10, atol=1e-10)


@given(
    st.sampled_from([1, 2, 5, 64, 2048]),
    st.sampled_from([1, 2, 40]),
    st.sampled_from([1, 3]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([4096, 2**26]),
    st.integers(0, 2**32),
)
@settings(max_examples=50)
def test_distances_and_densities_equal_brute_force(channels, count, k, dtype, chunk_bytes, seed):
    k, vectors, z = min(k, count), draw(seed, count, channels).to(dtype), draw(seed + 1, 2, channels, 2, 3).to(dtype)
    vectors[count // 2 :: 3] = vectors[0].clone()
    z[0, :, 0, 0], z[1, :, 1, 2] = vectors[0], vectors[-1]
    d = kth_distances(z, vectors, k)
    options = {"neighbors": k, "chunk_bytes": chunk_bytes}
    close = {"rtol": 1e-5, "atol": 1e-5}
    kept = torch.promote_types(dtype, torch.float32)
    distance = stored("distance", vectors.to(kept), **options).normality(z)
    assert distance.dtype == kept
    torch.testing.assert_close(-distance.double(), d, **close)
    base = stored("nearest", vectors.to(kept), **options)
    volume = channels / 2 * math.log(math.pi) - math.lgamma(channels / 2 + 1)
    expected = math.log(k) - math.log(count) - volume - channels * torch.log(d.clamp(min=base.floor.double()))
    torch.testing.assert_close(base.log_prob(z).double(), expected, **close)
    torch.testing.assert_close(base.normality(z).double(), expected / channels, **close)
    base = stored("kernel", vectors.to(kept), **options)
    expected = kernel_density(rows(z), vectors, base.bandwidth.double().square()).view(2, 2, 3)
    torch.testing.assert_close(base.log_prob(z).double(), expected, **close)
    assert all(x.isfinite().all() for x in (base.log_prob(z), base.bandwidth, base.floor))


@pytest.mark.parametrize("form", ["nearest", "kernel", "distance"])
def test_own_image_is_left_out(form):
    vectors, images = draw(0, 40, 3), torch.arange(40) // 10
    z, leave_out = draw(1, 3, 3, 4, 4), torch.tensor([2, 0, 7])  # no vector is of image 7
    base = stored(form, vectors, images, neighbors=2)
    for i, image in enumerate(leave_out.tolist()):
        smaller = stored(form, vectors[images != image], images[images != image], neighbors=2)
        smaller.floor, smaller.bandwidth = base.floor, base.bandwidth
        got = base.normality(z, leave_out=leave_out)[i]
        torch.testing.assert_close(got, smaller.normality(z[i : i + 1])[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            base.reweight(z, 5, leave_out)[i], smaller.reweight(z[i : i + 1], 5)[0], rtol=1e-10, atol=1e-10
        )


def test_leaving_out_all_but_too_few_vectors_is_an_error():
    base = stored("nearest", draw(0, 5, 2), torch.tensor([0, 0, 0, 1, 1]), neighbors=3)
    z = draw(1, 2, 2, 1, 1)
    assert base.normality(z, leave_out=torch.tensor([1, 2])).isfinite().all()
    with pytest.raises(ConfigError, match="leave at least 3 vectors of other images, but got image 0; store more"):
        base.normality(z, leave_out=torch.tensor([1, 0]))
    with pytest.raises(ShapeError, match=r"leave_out must be \(B,\) = \(2,\), but got \(3,\)"):
        base.normality(z, leave_out=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("form", ["exact", "marginal", "mode"])
def test_kernel_with_statistics_is_a_mixture_around_the_stored_latents(form):
    vectors, z = draw(0, 12, 5), draw(1, 2, 5, 3, 2)
    alpha, beta, shift = draw(2, 2, 1, 3, 2).exp(), draw(3, 2, 1, 3, 2).exp(), draw(4, 2, 1, 3, 2)
    base = stored("kernel", vectors, variance_form=form)
    got = base.log_prob(z, Statistics(beta, alpha))
    each = []
    for m in vectors:
        normal = SemanticNormal(alpha[:, 0], beta[:, 0], m.expand(2, 3, 2, 5), "mode" if form == "mode" else "marginal")
        compute = normal.expected_log_prob if form == "exact" else normal.log_prob
        each.append(compute(z.movedim(1, -1)))
    torch.testing.assert_close(got, torch.stack(each).logsumexp(0) - math.log(12), rtol=1e-10, atol=1e-10)
    known = base.log_prob(z, Statistics(beta))
    expected = kernel_density(rows(z), vectors, beta[:, 0].flatten(1)).view(2, 3, 2)
    torch.testing.assert_close(known, expected, rtol=1e-10, atol=1e-10)
    shifted = base.log_prob(z + shift, Statistics(beta, alpha, normal_shift=shift))
    torch.testing.assert_close(shifted, got, rtol=1e-10, atol=1e-10)
    plain = stored("nearest", vectors)
    assert torch.equal(plain.log_prob(z, Statistics(beta, alpha)), plain.log_prob(z))


@pytest.mark.parametrize("form", ["nearest", "kernel"])
def test_anomalous_latents_give_log_odds(form):
    vectors, others, z = draw(0, 20, 4), 2 + draw(1, 10, 4), draw(2, 2, 4, 3, 3)
    base = stored(form, vectors, anomalies=stored(form, others))
    normal, anomalous = stored(form, vectors).log_prob(z), stored(form, others).log_prob(z)
    torch.testing.assert_close(base.log_odds(z), normal - anomalous)
    mask = draw(3, 2, 3, 3) > 0
    torch.testing.assert_close(base.log_prob(z, None, mask), torch.where(mask, anomalous, normal))
    assert torch.equal(base.log_prob(z), normal)
    assert torch.equal(stored(form, vectors).log_prob(z, None, mask), normal)
    with pytest.raises(ConfigError, match="anomalies must be a memory of anomalous latents for log_odds, but got None"):
        stored(form, vectors).log_odds(z)


def test_log_likelihood_of_a_whole_sample():
    """The flow x = 2 z of C H W values: the density of a sample is the product over its locations."""
    base, x = stored("kernel", draw(0, 20, 4)), draw(1, 2, 4, 3, 3)
    log_det = torch.full((2,), -4 * 9 * math.log(2), dtype=torch.float64)
    whole = log_likelihood(base.log_prob(x / 2), log_det, "sample")
    by_location = log_likelihood(base.log_prob(x / 2), log_det[:, None, None].expand(2, 3, 3) / 9, "location")
    torch.testing.assert_close(whole, by_location.sum((1, 2)))


@pytest.mark.parametrize("form", ["nearest", "kernel", "distance"])
def test_maps_do_not_depend_on_the_batch_and_autocast(form):
    base = stored(form, draw(0, 300, 24, dtype=torch.float32), neighbors=2)
    z = draw(1, 4, 24, 6, 7, dtype=torch.float32)
    together = base.normality(z)
    alone = torch.cat([base.normality(x[None]) for x in z])
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(base.normality(z), together, rtol=1e-6, atol=1e-6)
    z[0, :, 0, 0] = torch.nan
    got = base.normality(z)
    assert torch.equal(got[1:], together[1:])
    assert got[0, 0, 0].isnan()
    assert torch.equal(got[0, 1:], together[0, 1:])


@pytest.mark.parametrize("form", ["nearest", "kernel", "distance"])
def test_gradients_of_the_latents(form):
    base, z = stored(form, draw(0, 8, 3), torch.arange(8) // 2, neighbors=2), draw(1, 2, 3, 1, 2).requires_grad_()
    leave_out = torch.tensor([0, 3])
    assert torch.autograd.gradcheck(lambda z: base.normality(z, leave_out=leave_out), (z,))
    # At a stored vector too, the gradient is finite.
    at = base.vectors[:4].T.reshape(1, 3, 2, 2).clone().requires_grad_()
    base.normality(at).sum().backward()
    assert at.grad.isfinite().all()


@pytest.mark.parametrize("form", ["nearest", "kernel", "distance"])
def test_temporary_memory_is_bounded_by_the_argument(form):
    vectors, z = draw(0, 20000, 4, dtype=torch.float32), draw(1, 2, 4, 12, 12, dtype=torch.float32)
    base = stored(form, vectors, chunk_bytes=2**20)
    with Largest() as largest:
        base.normality(z)
    assert largest.bytes <= 2**20


def test_a_million_vectors():
    vectors, z = draw(0, 10**6, 2, dtype=torch.float32), draw(1, 1, 2, 1, 5, dtype=torch.float32)
    z[0, :, 0, 0] = vectors[-1]
    base = stored("distance", vectors, neighbors=4)
    torch.testing.assert_close(-base.normality(z).double(), kth_distances(z, vectors, 4), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["nearest", "kernel"])
def test_a_flow_is_trained_by_the_leave_one_image_out_likelihood(form):
    """Two images at different scales: shrinking the differences between them raises the likelihood."""
    x, scale = draw(0, 4, 2, 3, 3), torch.zeros((), dtype=torch.float64, requires_grad=True)
    base = stored(form, rows(x).reshape(-1, 2), torch.arange(4).repeat_interleave(9))
    optimizer, values = torch.optim.SGD([scale], lr=0.05), []
    for _ in range(5):
        z = x * scale.exp()
        likelihood = log_likelihood(
            base.log_prob(z, leave_out=torch.arange(4)), (2 * scale).expand(4, 3, 3), "location"
        )
        scale.grad = None
        (-likelihood.mean()).backward()
        optimizer.step()
        values.append(likelihood.mean().item())
    assert values[-1] > values[0] + 0.01


# PatchCore's image score


def published_score(z, vectors, b):
    """Eq. 6 and 7 of Roth et al. (2022), one image (C, H, W) at a time, in float64."""
    patches = z.double().flatten(1).T.numpy()
    vectors = vectors.double().numpy()
    d = np.sqrt(((patches[:, None] - vectors) ** 2).sum(2))
    test = d.min(1).argmax()
    own = d[test].argmin()
    near = np.sqrt(((vectors - vectors[own]) ** 2).sum(1)).argsort(kind="stable")[:b]
    weight = 1 - np.exp(d[test, own]) / np.exp(d[test, near]).sum()
    return weight * d[test, own]


@pytest.mark.parametrize("b", [2, 9, 100])
def test_reweighted_score_is_the_published_one(b):
    vectors, z = draw(0, 30, 6), draw(1, 5, 6, 4, 4)
    got = stored("distance", vectors).reweight(z, b)
    expected = [published_score(x, vectors, b) for x in z]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    base = stored("distance", vectors)
    assert torch.equal(base.reweight(z, 1), -base.normality(z).flatten(1).amin(1))


def test_reweighting_does_not_overflow():
    base = stored("distance", draw(0, 30, 6, dtype=torch.float32))
    assert base.reweight(1e4 * draw(1, 2, 6, 2, 2, dtype=torch.float32)).isfinite().all()


# Fitting


def fitted(latents, features=None, **options):
    base = Memory(**options)
    accumulator = base.accumulator()
    for i in range(0, len(latents), 2):
        accumulator.update(latents[i : i + 2], *([] if features is None else [features[i : i + 2]]))
    base.fit(accumulator)
    return base


def test_all_latents_are_stored_with_their_images():
    latents = draw(0, 5, 3, 2, 4, dtype=torch.float32)
    base = fitted(latents)
    assert torch.equal(base.vectors, rows(latents).reshape(-1, 3))
    assert torch.equal(base.images, torch.arange(5).repeat_interleave(8))
    assert (base.normality(latents) > base.normality(latents, leave_out=torch.arange(5))).all()


@pytest.mark.parametrize("space", ["latents", "features"])
@pytest.mark.parametrize("size", [None, 12])
def test_accumulators_are_merged_in_the_order_of_the_images(size, space):
    latents, features = draw(0, 5, 3, 2, 4), draw(1, 5, 6, 2, 4)
    parts = [StoredLatents(size, space) for _ in range(4)]
    for part, some in zip(parts, (slice(0, 5), slice(0, 2), slice(2, 2), slice(2, 5)), strict=True):
        part.update(latents[some], features[some])
    parts[1].merge(parts[2])
    parts[1].merge(parts[3])
    whole, merged = parts[0].select(), parts[1].select()
    assert torch.equal(merged.vectors, whole.vectors)
    assert torch.equal(merged.images, whole.images)
    assert merged.radius == whole.radius
    locations = rows(latents).reshape(-1, 3)
    where = (merged.vectors[:, None] == locations).all(2).int().argmax(1)
    assert torch.equal(locations[where], merged.vectors)
    assert torch.equal(where // 8, merged.images)
    if size is None:
        assert torch.equal(merged.vectors, locations)


@pytest.mark.parametrize("limit_bytes", [2**30, 40 * 3 * 8])
def test_latents_beyond_the_limit_are_covered(limit_bytes):
    latents = draw(0, 12, 3, 4, 4)
    base = fitted(latents, size=15, limit_bytes=limit_bytes)
    farthest = kth_distances(latents, base.vectors, 1).max().item()
    assert farthest <= base.radius * (1 + 1e-9)
    if limit_bytes == 2**30:
        assert farthest == pytest.approx(base.radius.item())
        chosen = k_center(rows(latents).reshape(-1, 3), 15).indices
        assert torch.equal(base.vectors, rows(latents).reshape(-1, 3)[chosen])


def test_scales_share_one_limit(monkeypatch):
    monkeypatch.setattr(stored_latents, "LIMIT", 4 * (3 + 9) * 100)
    scales = {0: draw(0, 12, 3, 4, 4, dtype=torch.float32), 1: draw(1, 12, 9, 4, 4, dtype=torch.float32)}
    model = LikelihoodModel([Identity(), Identity()], [Memory(size=15), Memory(size=15)])
    model.fit_latents([{k: {"z": z[i : i + 4]} for k, z in scales.items()} for i in (0, 4, 8)])
    for k, base in enumerate(model.bases):  # each collects 100 vectors of its own
        expected = fitted(scales[k], size=15, limit_bytes=4 * scales[k].shape[1] * 100)
        assert torch.equal(base.vectors, expected.vectors)
        assert 0 < base.radius == expected.radius
    own = LikelihoodModel([Identity(), Identity()], [Memory(size=15), Memory(size=15, limit_bytes=2**20)])
    own.fit_latents([{k: {"z": z} for k, z in scales.items()}])
    assert torch.equal(own.bases[0].vectors, fitted(scales[0], size=15, limit_bytes=4 * 12 * 100).vectors)
    assert torch.equal(own.bases[1].vectors, fitted(scales[1], size=15, limit_bytes=2**20).vectors)


def test_the_default_limit_grows_with_the_size(monkeypatch):
    monkeypatch.setattr(stored_latents, "LIMIT", 100)
    latents = draw(0, 12, 3, 4, 4)
    base = fitted(latents, size=40)
    assert torch.equal(base.vectors, fitted(latents, size=40, limit_bytes=4 * 40 * 3 * 8).vectors)
    halves = StoredLatents(size=40), StoredLatents(size=40)
    for half, part in zip(halves, latents.split(6), strict=True):
        half.update(part)
    merged = StoredLatents(size=40)
    for half in halves:
        merged.merge(half)
    assert len(merged.select().vectors) == 40


COLLECT = """
import sys
from pathlib import Path
import torch
from semflow.bases import Memory, stored
from semflow.functional import coreset_stream

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 2**10

def measured(*given):
    cover = select(*given)
    peak.append(anonymous())  # while its codes are there
    return cover

stored.LIMIT, select, peak, base = 2**26, coreset_stream.covered, [], Memory(size=50)
coreset_stream.covered = measured
torch.set_num_threads(1)
latents = torch.randn(8, 64, 32, 32)
accumulator = base.accumulator()
before = anonymous()
for step in range(200):  # 400 MiB
    accumulator.update(latents + step)
base.fit(accumulator)
assert len(base.vectors) == 50 and len(peak) > 2
print((max(peak) - before) / 2**26)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
def test_collecting_and_selecting_take_about_twice_the_limit():
    """In a process of its own, since memory that other tests have freed may come back in this one."""
    run = subprocess.run([sys.executable, "-c", COLLECT], capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr
    assert float(run.stdout) < 3


@pytest.mark.parametrize(("size", "count"), [(7, 7), (0.25, 10), (1000, 40), (1.0, 40)])
def test_size_is_a_number_or_a_share(size, count):
    base = fitted(draw(0, 5, 3, 2, 4), size=size)
    assert base.vectors.shape == (count, 3)
    assert len(base.vectors.unique(dim=0)) == count


def test_vectors_may_be_chosen_by_features():
    latents, features = draw(0, 4, 3, 2, 2, dtype=torch.float32), torch.zeros(4, 6, 2, 2)
    features[0, 0, 0, 0], features[2, 1, 1, 1] = 5.0, 9.0
    base = fitted(latents, features, size=3, space="features")
    chosen = {tuple(x) for x in base.vectors.tolist()}
    assert {tuple(latents[0, :, 0, 0].tolist()), tuple(latents[2, :, 1, 1].tolist())} <= chosen
    with pytest.raises(ShapeError, match=r"features must be given at the locations of z \(2, 3, 2, 2\), but got None"):
        fitted(latents, size=3, space="features")


def test_fitting_rejects_invalid_latents():
    with pytest.raises(ShapeError, match="accumulator must hold the latents of at least one image, but got none"):
        Memory().fit(Memory().accumulator())
    with pytest.raises(DataError, match="z must be finite, but got inf or NaN"):
        Memory().accumulator().update(torch.full((1, 2, 3, 3), torch.nan))
    with pytest.raises(ShapeError, match=r"z must be \(B, C, H, W\), but got \(2, 3\)"):
        Memory().accumulator().update(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"features must be given at the locations of z .*, but got \(1, 2, 3, 4\)"):
        StoredLatents(2, "features").update(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 4))
    with pytest.raises(ShapeError, match="vectors must be at least 4, one per neighbor, but got 3"):
        Memory(neighbors=4).store(torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="vectors and images must be floats"):
        Memory().store(torch.zeros(3, 2), torch.zeros(2))


def test_invalid_arguments_are_rejected():
    for options, words in (
        ({"form": "cosine"}, "form must be one of nearest, kernel, distance, but got 'cosine'"),
        ({"neighbors": 0}, "neighbors must be at least 1, but got 0"),
        ({"size": 0}, "size must be positive, but got 0"),
        ({"size": 1.5}, "size must be at most 1 as a share, but got 1.5"),
        ({"variance_form": "paper"}, "variance_form must be one of exact, marginal, mode"),
    ):
        with pytest.raises(ConfigError, match=words):
            Memory(**options)
    with pytest.raises(ConfigError, match="memory must be fitted before use, but got no stored vectors"):
        Memory().log_prob(torch.zeros(1, 2, 3, 3))
    with pytest.raises(ShapeError, match=r"z must be \(B, 2, H, W\), but got \(1, 3, 1, 1\)"):
        stored("nearest", draw(0, 3, 2)).log_prob(torch.zeros(1, 3, 1, 1))
    with pytest.raises(ConfigError, match="form must be nearest or kernel for log_prob, but got distance"):
        stored("distance", draw(0, 3, 2)).log_prob(torch.zeros(1, 2, 1, 1))


@pytest.mark.parametrize("form", ["nearest", "kernel", "distance"])
@pytest.mark.parametrize(
    "vectors", [torch.ones(1, 2), torch.ones(50, 2), torch.cat([torch.ones(40, 2), torch.rand(5, 2)])]
)
def test_duplicates_and_single_vectors_give_finite_numbers(form, vectors):
    base = stored(form, vectors, torch.arange(len(vectors)) // 4)
    z = torch.cat([vectors[0].view(1, 2, 1, 1), torch.full((1, 2, 1, 1), 1e15)])
    assert base.normality(z).isfinite().all()
    assert base.normality(z)[0] > base.normality(z)[1]


def test_state_loads_into_a_base_of_another_size():
    base = fitted(draw(0, 4, 3, 2, 2, dtype=torch.float32), form="kernel", size=0.5)
    other, z = Memory("kernel"), draw(1, 1, 3, 2, 2, dtype=torch.float32)
    other.load_state_dict(base.state_dict())
    assert torch.equal(other.log_prob(z), base.log_prob(z))
    assert other.bandwidth != 1
    broken = base.state_dict() | {"images": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match=r"vectors must be finite \(M, C\) with images \(M,\), but got"):
        Memory("kernel").load_state_dict(broken)
    assert (
        repr(base)
        == "Memory(\n  kernel, neighbors=1, size=0.5, space=latents, vectors=(8, 3)\n  (prior): StandardNormal()\n)"
    )


def test_fitting_is_reproducible():
    latents = draw(0, 4, 3, 8, 8)
    one, two = (fitted(latents, form="kernel", size=50, projection=None, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
