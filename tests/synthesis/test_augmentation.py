"""Random changes of images by name, and of their regions of interest."""

import numpy as np
import pytest
import torch
from torch import Tensor

from semflow.data import Sample
from semflow.errors import ConfigError
from semflow.synthesis import AUGMENTATIONS, SyntheticAnomalies, augment, check_augment

HEIGHT, WIDTH = 30, 40
REGION = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
REGION[4:20, 22:38] = True


def disk(y: float, x: float) -> Tensor:
    """A bright disk on black; every rotation about its center leaves it."""
    rows, columns = torch.arange(HEIGHT)[:, None] + 0.5 - y, torch.arange(WIDTH) + 0.5 - x
    return torch.exp(-(rows**2 + columns**2) / 30).expand(3, -1, -1).clone()


def changed(image: Tensor, *names: str, seed: int = 0) -> Tensor:
    return augment(image, names, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
def test_rotations_are_about_the_center(seed: int) -> None:
    whole = disk(HEIGHT / 2, WIDTH / 2)
    near = disk(HEIGHT / 2, WIDTH / 2)[0] > 2e-3  # further away, reflections of the disk come in
    torch.testing.assert_close(changed(whole, "rotate", seed=seed)[:, near], whole[:, near], atol=0.02, rtol=0)
    inside = torch.cat([disk(12, 30), REGION[None].float()])
    turned = changed(inside, "rotate", seed=seed)
    place = turned[3] > 0
    torch.testing.assert_close(turned[:3, place], inside[:3, place], atol=0.02, rtol=0)


def test_flips_are_exact() -> None:
    image = torch.rand(3, HEIGHT, WIDTH)
    found = {tuple(k for k in (1, 2) if torch.allclose(changed(image, "flip", seed=s), image.flip([k]), atol=1e-5))
             for s in range(20)}  # fmt: skip
    assert found == {(), (1,), (2,)}
    assert any(torch.equal(changed(image, "flip", seed=s), image) for s in range(20))


def test_shifts_are_up_to_a_tenth() -> None:
    middle = disk(HEIGHT / 2, WIDTH / 2)
    places = torch.tensor([divmod(int(changed(middle, "shift", seed=s)[0].argmax()), WIDTH) for s in range(40)]).float()
    assert places.min(0).values.tolist() == pytest.approx([HEIGHT * 0.4, WIDTH * 0.4], abs=1.5)
    assert places.max(0).values.tolist() == pytest.approx([HEIGHT * 0.6, WIDTH * 0.6], abs=1.5)


def test_light_changes_contrast_and_brightness_alone() -> None:
    image = 0.4 + 0.2 * torch.rand(3, HEIGHT, WIDTH)
    for seed in range(5):
        other = changed(image, "light", seed=seed)
        slope = (other.max() - other.min()) / (image.max() - image.min())
        assert 0.8 <= slope <= 1.2
        torch.testing.assert_close(other, (image - image.min()) * slope + other.min())


@pytest.mark.parametrize("seed", range(10))
def test_what_is_outside_the_region_never_comes_in(seed: int) -> None:
    image = torch.rand(4, HEIGHT, WIDTH)
    image[3] = REGION
    other = torch.where(REGION, image, torch.rand(4, HEIGHT, WIDTH))
    other[3] = REGION
    a, b = (changed(x, *AUGMENTATIONS, seed=seed) for x in (image, other))
    assert torch.equal(a, b)
    assert ((a[3] == 0) | (a[3] == 1)).all()
    assert ((a[3] > 0) & REGION).any()
    assert a[:3, a[3] > 0].sub(128 / 255).abs().min() >= 0


def test_thin_regions_keep_a_part_of_their_place() -> None:
    image = torch.ones(4, HEIGHT, WIDTH)
    image[3] = 0
    image[3, 3:5, 5:9] = image[3, 25:27, 30:34] = 1  # a quarter turn brings neither to the other
    for seed in range(30):
        assert (changed(image, "rotate", "shift", seed=seed)[3] * image[3]).any()


def test_draws_depend_on_seed_epoch_and_image_alone() -> None:
    images = [Sample(torch.rand(3, HEIGHT, WIDTH), 0, None, f"{k}.png") for k in range(6)]

    def epoch(number: int, seed: int = 0) -> dict[int, Tensor]:
        source = SyntheticAnomalies(images, None, seed=seed, augment="rotate,light")
        source.set_epoch(number)
        return {source.index(p): source[p].image for p in reversed(range(6))}

    first, again = epoch(0), epoch(0)
    assert all(torch.equal(first[k], again[k]) for k in range(6))
    for other in (epoch(1), epoch(0, seed=1)):
        assert not any(torch.equal(first[k], other[k]) for k in range(6))


def test_anomalies_are_pasted_into_the_changed_images() -> None:
    images = [Sample(torch.rand(3, HEIGHT, WIDTH), 0, None, f"{k}.png") for k in range(8)]
    plain, pasted = SyntheticAnomalies(images, None, augment="rotate"), SyntheticAnomalies(images, augment="rotate")
    for p in range(8):
        a, b = plain[p], pasted[p]
        assert torch.equal(a.image[:, ~b.anomaly_mask], b.image[:, ~b.anomaly_mask])


@pytest.mark.parametrize("names", ["rotate,spin", ("rotate", "spin"), "", "rotate,"])
def test_unknown_names_list_the_valid_ones(names) -> None:
    with pytest.raises(ConfigError, match=r"augment must be of rotate, flip, shift, light, but got '(spin)?'"):
        check_augment(names)
