"""PatchCore's reweighted distance, written out as in the paper."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.bases import Memory, reweighted_distance
from semflow.errors import ConfigError


def truth(query, memory, neighbors):
    """Eq. 7 of the paper in Python's floats."""
    distances = [math.dist(query, m) for m in memory]
    nearest = min(range(len(memory)), key=distances.__getitem__)
    order = sorted(range(len(memory)), key=lambda k: math.dist(memory[nearest], memory[k]))[:neighbors]
    weight = 1 - math.exp(distances[nearest]) / sum(math.exp(distances[k]) for k in order)
    return (weight if neighbors > 1 else 1) * distances[nearest]


@given(st.integers(1, 30), st.sampled_from([1, 2, 9]), st.sampled_from([1, 3, 20]), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_distance_is_that_of_the_paper(rows, neighbors, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    memory, queries = (torch.randn(n, channels, generator=generator) for n in (rows, 4))
    found = reweighted_distance(queries, memory, neighbors)
    expected = [truth(q, memory.tolist(), neighbors) for q in queries.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_memory_scores_images_at_the_location_of_the_largest_distance():
    generator = torch.Generator().manual_seed(0)
    z, x = (torch.randn(n, 5, 4, 4, generator=generator) for n in (3, 2))
    base = Memory("distance", image_neighbors=3)
    accumulator = base.accumulator()
    accumulator.update(z)
    base.fit(accumulator)
    normality = base.normality(x)
    found = base.image_score(x, normality)
    for k in range(2):
        row, column = divmod(int(normality[k].argmin()), 4)
        expected = truth(x[k, :, row, column].tolist(), base.vectors.tolist(), 3)
        assert found[k].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(base.reweight(x, 3), found)
    assert Memory("distance").image_score(x, normality) is None


def test_large_distances_do_not_overflow():
    memory = torch.tensor([[0.0], [1.0], [2.0]])
    found = reweighted_distance(torch.tensor([[1e4], [-1e4]]), memory, 3)
    weight = 1 - 1 / (1 + math.e + math.e**2)  # the others are farther by 1 and 2
    assert found.tolist() == pytest.approx([weight * 9998, weight * 1e4], rel=1e-3)


def test_number_of_neighbors_is_checked():
    with pytest.raises(ConfigError, match="neighbors must be at least 1"):
        reweighted_distance(torch.zeros(1, 2), torch.zeros(3, 2), 0)
    with pytest.raises(ConfigError, match="image_neighbors must be at least 1"):
        Memory("distance", image_neighbors=0)
