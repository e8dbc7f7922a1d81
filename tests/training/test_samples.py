"""Samples are checked where batches are made, in every function that takes a data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import semflow
from helpers.small_detector import SIZE, make_detector, make_images
from semflow.data import CheckedSamples, as_sample, collate
from semflow.detectors import Detector
from semflow.errors import ConfigError, DataError, SemflowError, ShapeError
from semflow.training import calibrate, evaluate, refit, results

GOOD = make_images(12)
IMAGES = [sample.image for sample in GOOD]


def late(change: Callable[[torch.Tensor], Any]) -> list[Any]:
    """Return samples of which only the last is changed, beyond the first batches."""
    return [*GOOD[:-1], GOOD[-1]._replace(image=change(GOOD[-1].image))]


WRONG: dict[str, tuple[list[Any], type[SemflowError], str]] = {
    "0 to 255": (late(lambda x: x * 255), ShapeError, r"^image of 11\.png must lie in \[0, 1\], but got values from"),
    "normalized": (late(lambda x: (x - 0.5) / 0.1), ShapeError, r"^image of 11\.png must lie in \[0, 1\]"),
    "NaN": (late(lambda x: x * torch.nan), DataError, r"^11\.png must have finite pixels, but got inf or NaN"),
    "bytes": (late(lambda x: (x * 255).byte()), ShapeError, r"^image of 11\.png must be float .* divide it by 255$"),
    "no channel": (late(lambda x: x[0]), ShapeError, r"\(32, 32\) of torch.float32; add a first axis$"),
    "channels last": (
        late(lambda x: x.permute(1, 2, 0)),
        ShapeError,
        r"but got \(32, 32, 3\) .*; permute it to \(C, H, W\)$",
    ),
    "batched": (late(lambda x: x[None]), ShapeError, r"but got \(1, 3, 32, 32\) of torch.float32; convert it$"),
    "no tensor": (late(lambda x: "11.png"), ShapeError, r"^image of 11\.png must be a float tensor .*, but got str; "),
    "label": ([*GOOD[:-1], GOOD[-1]._replace(label=7)], ShapeError, r"^label of 11\.png must be 0 .*, but got '7'$"),
    "word": ([*GOOD[:-1], (IMAGES[0], "good")], ShapeError, r"^label of dataset\[11\] must be 0 .*, but got 'good'$"),
    "mask": (
        [*GOOD[:-1], (IMAGES[0], 0, torch.zeros(8, 8))],
        ShapeError,
        r"^anomaly_mask of dataset\[11\] must be \(32, 32\)",
    ),
    "classes": (
        [*GOOD[:-1], (IMAGES[0], 0, torch.arange(SIZE * SIZE).view(SIZE, SIZE) % 3)],
        ShapeError,
        r"^anomaly_mask of dataset\[11\] must be 0 where normal and 1 or 255 .*, but got 3 values",
    ),
    "values": (
        [*GOOD[:-1], (IMAGES[0], 0, None, "a", 1)],
        ShapeError,
        r"^dataset\[11\] must be an image, label, .* 5 values$",
    ),
    "dict": ([*GOOD[:-1], {"x": IMAGES[0]}], ShapeError, r"^dataset\[11\] must have an image, but got a dict with x$"),
}

TAKES: dict[str, Callable[[Detector, Any], Any]] = {
    "fit": lambda d, data: semflow.fit(d, data, epochs=1, batch_size=4, progress=False, synthesis=None),
    "fit with synthesis": lambda d, data: semflow.fit(d, data, epochs=2, batch_size=4, progress=False),
    "fit with workers": lambda d, data: semflow.fit(d, data, epochs=1, batch_size=4, progress=False, workers=1),
    "refit": refit,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "results": lambda d, data: list(results(d, data)),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("take", ["fit", "fit with synthesis", "refit", "calibrate", "evaluate", "results"])
def test_each_sample_is_checked(take: str, kind: str) -> None:
    data, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        TAKES[take](make_detector(), data)


def test_workers_report_the_sample() -> None:
    data, error, message = WRONG["0 to 255"]
    with pytest.raises(error, match=message):
        TAKES["fit with workers"](make_detector(), data)


@pytest.mark.parametrize("kind", ["0 to 255", "label"])
def test_calibration_images_are_checked(kind: str) -> None:
    data, error, message = WRONG[kind]
    others = [*make_images(9, seed=1), data[-1]]
    for take in (semflow.fit, refit):
        with pytest.raises(error, match=message):
            take(make_detector(), GOOD, calibration=others)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(GOOD)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(GOOD, collate_fn=collate), "but got DataLoader; pass its dataset, and batch_size and workers"),
        ("images/good", "but got str; open it with semflow.data.open_dataset"),
        (Path("images/good"), "open it with semflow.data.open_dataset"),
        (Stream(), "but got Stream; make a list of its samples"),
        (iter(GOOD), "make a list of its samples"),
        (None, "but got NoneType; make a list of its samples"),
        (GOOD[0], "but got Sample; put samples into a list"),
        (dict(enumerate(GOOD)), "but got dict; put samples into a list"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("take", list(TAKES))
def test_what_is_no_data_set_is_refused(take: str, data: Any, message: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^dataset must be a data set with a length and items by number, .*{message}$"
    ):
        TAKES[take](make_detector(), data)
    with pytest.raises(ConfigError, match=r"^calibration must be a .*data set"):
        semflow.fit(make_detector(), GOOD, calibration=data if data is not None else "0.2")


class Tuples(Dataset):
    """Data set as torchvision has them."""

    def __len__(self) -> int:
        return len(GOOD)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return IMAGES[index], 0


@pytest.mark.parametrize(
    "data",
    [
        Tuples(),
        IMAGES,
        torch.stack(IMAGES),
        torch.stack(IMAGES).numpy(),
        [{"image": image, "label": 0, "mask": None, "name": "more"} for image in IMAGES],
        [sample._replace(image=sample.image.double()) for sample in GOOD],
        [sample._replace(image=sample.image.clone().requires_grad_()) for sample in GOOD],
        [sample._replace(label=torch.tensor([0])) for sample in GOOD],
        [sample._replace(label=np.int64(0), path=Path(sample.path)) for sample in GOOD],
        [sample._replace(anomaly_mask=torch.zeros(1, SIZE, SIZE)) for sample in GOOD],
    ],
    ids=["tuples", "images", "tensor", "array", "dicts", "float64", "gradients", "label tensors", "numpy", "masks"],
)
def test_other_forms_of_samples_train_the_same_detector(data: Any) -> None:
    trained = [TAKES["fit"](make_detector(), given).state_dict() for given in (GOOD, data)]
    for name, x in trained[0].items():
        assert torch.equal(trained[1][name], x), name


def test_masks_of_numbers_evaluate_as_bool_ones() -> None:
    detector = make_detector()
    detector.fit_score([image[None] for image in IMAGES])
    mask = torch.zeros(SIZE, SIZE)
    mask[4:12, 4:12] = 1
    # Antialiased, with levels on both sides of the middle.
    soft = torch.nn.functional.interpolate(mask[None, None, ::4, ::4], size=SIZE, mode="bilinear")[0, 0]
    wide = soft > 0.5

    def evaluated(one: torch.Tensor) -> dict[str, float | None]:
        return evaluate(detector, [(image, k % 2, one if k % 2 else one * 0) for k, image in enumerate(IMAGES)])

    expected = evaluated(mask.bool())
    for form in (mask, mask.byte(), (mask * 255).byte(), mask[None], mask[..., None], mask.double(), mask.half()):
        assert evaluated(form) == expected
    assert evaluated(soft) == evaluated((soft * 255).round().byte()) == evaluated(wide)
    for wrong in (-mask, mask * torch.nan, mask + 1):
        with pytest.raises(ShapeError, match=r"^anomaly_mask of a must be 0 where normal"):
            as_sample((IMAGES[0], 1, wrong, "a"), "b")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_training_needs_no_gradients_of_the_caller(context: Callable[[], Any]) -> None:
    expected = TAKES["fit"](make_detector(), GOOD)
    with context():
        found = TAKES["fit"](make_detector(), GOOD) if context is torch.no_grad else None
    detector = make_detector()
    with context():
        TAKES["fit"](detector, GOOD)
        assert torch.is_grad_enabled() is (context is torch.inference_mode and torch.is_grad_enabled())
    for other in filter(None, (found, detector)):
        assert all(torch.equal(x, other.state_dict()[name]) for name, x in expected.state_dict().items())


def test_indices_beyond_the_end_are_refused_and_negative_ones_count_from_it() -> None:
    samples = CheckedSamples(IMAGES)
    assert torch.equal(samples[-1].image, IMAGES[-1])
    with pytest.raises(IndexError):
        samples[len(IMAGES)]
    with pytest.raises(DataError, match=r"^dataset must hold at least one image, but got none$"):
        evaluate(make_detector(), [])
