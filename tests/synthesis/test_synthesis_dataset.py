"""SyntheticAnomalies: equal parts, and tensors that depend only on seed, epoch and position."""

import copy
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from semflow.errors import ConfigError, DataError
from semflow.synthesis import KINDS, Blemishes, CutPaste, SyntheticAnomalies


class Item(NamedTuple):
    image: torch.Tensor
    label: int
    anomaly_mask: torch.Tensor | None
    path: str


class Normal(Dataset[Item]):
    """Dataset of noise images that records which images were read."""

    def __init__(self, count: int, side: int = 32) -> None:
        self.count, self.side, self.read = count, side, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        self.read.append(index)
        image = np.random.default_rng(index).random((3, self.side, self.side), np.float32)
        return Item(torch.from_numpy(image), -1, None, f"{index}.png")


def as_lists(items: list[Item]) -> list[Item]:
    return items


def draw(dataset: Dataset[Item], workers: int = 0, batch: int = 4, **options: bool) -> list[Item]:
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=as_lists, **options)
    return [item for items in loader for item in items]


def same(first: list[Item], second: list[Item]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.image, b.image) and torch.equal(a.anomaly_mask, b.anomaly_mask) and a[1::2] == b[1::2]
        for a, b in zip(first, second, strict=True)
    )


@given(st.lists(st.sampled_from(KINDS), max_size=4, unique=True), st.booleans(), st.integers(0, 50), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_consecutive_positions_contain_each_kind_once(kinds: list[str], normal: bool, epoch: int, count: int) -> None:
    if not kinds and not normal:
        return
    dataset = SyntheticAnomalies(Normal(count), CutPaste(kinds=tuple(kinds)) if kinds else None, normal=normal)
    dataset.set_epoch(epoch)
    parts = sorted((["normal"] if normal else []) + kinds)
    for start in range(count - len(parts) + 1):
        assert sorted(dataset.kind(start + k) for k in range(len(parts))) == parts


def test_batch_contains_equal_numbers_of_each_kind_with_labels() -> None:
    dataset = SyntheticAnomalies(Normal(16), seed=3)
    for epoch in range(5):
        dataset.set_epoch(epoch)
        items = [dataset[p] for p in range(8)]
        assert sum(item.label for item in items) == 6
        for position, item in enumerate(items):
            assert item.label == int(dataset.kind(position) != "normal")
            assert item.anomaly_mask is not None
            assert bool(item.anomaly_mask.any()) == bool(item.label)


def test_normal_items_are_unchanged_images() -> None:
    source = Normal(12)
    items = list(draw(SyntheticAnomalies(source, None)))
    assert [item.label for item in items] == [0] * 12
    for item in items:
        assert torch.equal(item.image, source[int(item.path.removesuffix(".png"))].image)


def test_epochs_are_different_permutations_of_the_images() -> None:
    dataset = SyntheticAnomalies(Normal(20), seed=5)
    orders = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        orders.append([dataset[p].path for p in range(20)])
        assert sorted(orders[-1]) == sorted(f"{k}.png" for k in range(20))
    assert len({tuple(order) for order in orders}) == 3


def test_every_other_image_is_a_donor() -> None:
    source = Normal(4)
    dataset = SyntheticAnomalies(source, CutPaste(kinds=("small",)), normal=False)
    donors = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        for position in range(4):
            source.read.clear()
            dataset[position]
            own, donor = source.read
            assert own != donor
            donors.add((own, donor))
    assert len(donors) == 12


def test_single_image_is_its_own_donor() -> None:
    source = Normal(1)
    item = SyntheticAnomalies(source, CutPaste(kinds=("circle",)), normal=False)[0]
    assert source.read == [0, 0]
    assert item.label == 1
    assert item.anomaly_mask is not None
    assert item.anomaly_mask.any()


def test_items_are_equal_with_workers() -> None:
    dataset = SyntheticAnomalies(Normal(10), CutPaste(kinds=KINDS), seed=7)
    dataset.set_epoch(2)
    assert same(draw(dataset), draw(dataset, workers=2))


def test_items_do_not_depend_on_the_thread_count() -> None:
    dataset = SyntheticAnomalies(Normal(4, side=256), CutPaste(kinds=("medium",)), normal=False, seed=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = [dataset[p] for p in range(4)]
        torch.set_num_threads(2)
        two = [dataset[p] for p in range(4)]
    finally:
        torch.set_num_threads(threads)
    assert same(one, two)


def test_items_depend_on_epoch_and_seed() -> None:
    dataset = SyntheticAnomalies(Normal(8), seed=0)
    first = draw(dataset)
    dataset.set_epoch(1)
    assert not same(first, draw(dataset))
    dataset.set_epoch(0)
    assert same(first, draw(dataset))
    assert not same(first, draw(SyntheticAnomalies(Normal(8), seed=1)))
    # Epoch and seed are separate words of the generator's seed: (1, 0) is not (0, 1).
    other = SyntheticAnomalies(Normal(8), seed=0)
    other.set_epoch(1)
    assert not same(draw(SyntheticAnomalies(Normal(8), seed=1)), draw(other))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_use_a_new_epoch(persistent: bool) -> None:
    dataset = SyntheticAnomalies(Normal(6), seed=0)
    loader = DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=as_lists, persistent_workers=persistent)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        items = [item for batch in loader for item in batch]
        assert same(items, [dataset[p] for p in range(6)])


def test_copies_and_pickles_give_equal_items() -> None:
    dataset = SyntheticAnomalies(Normal(5), seed=4)
    dataset.set_epoch(3)
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert other.epoch == 3
        assert same([dataset[p] for p in range(5)], [other[p] for p in range(5)])


def test_dataset_supports_negative_positions_and_rejects_large_ones() -> None:
    dataset = SyntheticAnomalies(Normal(5))
    assert torch.equal(dataset[-1].image, dataset[4].image)
    with pytest.raises(IndexError, match="position must be from -5 to 4, but got 5"):
        dataset[5]
    assert len(list(dataset)) == 5


def test_dataset_rejects_invalid_options() -> None:
    for kinds in (("small", "perlin"), ()):
        with pytest.raises(ConfigError, match="kinds must be at least one of small, medium, circle, scar, but got"):
            CutPaste(kinds=kinds)
    with pytest.raises(ConfigError, match="normal must be True without cut_paste"):
        SyntheticAnomalies(Normal(2), None, normal=False)
    for wrong in ("scar", CutPaste, 3):
        with pytest.raises(ConfigError, match=r"cut_paste must be an object such as CutPaste\(\) or None, but got"):
            SyntheticAnomalies(Normal(2), wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed must be at least 0"):
        SyntheticAnomalies(Normal(2), seed=-1)
    with pytest.raises(ConfigError, match="epoch must be at least 0"):
        SyntheticAnomalies(Normal(2)).set_epoch(-1)
    with pytest.raises(DataError, match="at least one image"):
        SyntheticAnomalies(Normal(0))


def test_dataset_uses_the_given_cut_paste() -> None:
    plain = CutPaste(jitter=0.0, rotation=0.0, border=0.0, kinds=("small",))
    hard = SyntheticAnomalies(Normal(2), plain, normal=False)
    soft = SyntheticAnomalies(Normal(2), CutPaste(kinds=("small",)), normal=False)
    assert not torch.equal(hard[0].image, soft[0].image)


def test_dataset_accepts_blemishes_in_place_of_cut_paste() -> None:
    blemishes, source = Blemishes(), Normal(12)
    dataset = SyntheticAnomalies(source, blemishes, normal=True, seed=2)
    assert dataset.parts == ("normal", *blemishes.kinds)
    assert [item.label for item in draw(dataset)] == [0, 1, 1, 1, 1, 1] * 2
    position, index = 1, dataset.index(1)
    rng = np.random.default_rng((2, 0, position))
    donor = (index + int(rng.integers(1, 12))) % 12
    image, mask = blemishes(source[index].image, source[donor].image, "foreign", rng)
    assert torch.equal(dataset[position].image, image)
    assert torch.equal(dataset[position].anomaly_mask, mask)
    assert same(draw(dataset), draw(dataset, workers=2))
