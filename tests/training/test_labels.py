"""Labels of training and calibration images: an anomalous one is named and refused, unless it is allowed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

import semflow
from helpers.after_epoch import AfterEpoch
from semflow.data import ImageDataset, Record, Sample, open_dataset
from semflow.detectors import Detector
from semflow.errors import DataError
from semflow.recipes import Backbone, cflow_ad, remember
from semflow.training import calibrate, fit, refit


def detector() -> Detector:
    return cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)


def samples(count: int = 12, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    none = torch.zeros(32, 32, dtype=torch.bool)
    return [Sample(torch.rand(3, 32, 32, generator=generator), 0, none, f"{i:02}.png") for i in range(count)]


def with_label(normal: list[Sample]) -> list[Sample]:
    return [*normal[:5], normal[5]._replace(label=1), normal[6]._replace(label=1), *normal[7:]]


def with_mask(normal: list[Sample]) -> list[Sample]:
    """Return samples of which one is labeled normal, or not at all, but has a mask that is not empty."""
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[3, 4] = True
    return [*normal[:5], normal[5]._replace(label=-1, anomaly_mask=mask), *normal[6:]]


class Lazy(Dataset[Sample]):
    """Data set that says nothing about its labels before a sample is loaded."""

    def __init__(self, content: list[Sample]) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, index: int) -> Sample:
        return self.content[index]


WRAPPED: dict[str, Callable[[list[Sample]], Dataset[Sample]]] = {
    "list": lambda content: content,  # type: ignore[dict-item,return-value]
    "data set": Lazy,
    "subset": lambda content: Subset(Lazy([*content[::-1]]), range(len(content) - 1, -1, -1)),
    "parts": lambda content: ConcatDataset([Lazy(content[:4]), Lazy(content[4:])]),
}
KINDS = {"label": with_label, "mask": with_mask}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("kind", KINDS)
def test_fit_refuses_the_first_anomalous_image(kind: str, wrap: str) -> None:
    data, steps = WRAPPED[wrap](KINDS[kind](samples())), []
    options = {"epochs": 1, "progress": False, "callbacks": [AfterEpoch(lambda *_: steps.append(1))]}
    with pytest.raises(DataError, match=r"^05.png must be normal, but got .*anomalous.*allow_anomalous"):
        fit(detector(), data, **options)
    assert not steps  # before training
    fit(detector(), data, allow_anomalous=True, **options)
    assert steps


@pytest.mark.parametrize("wrap", ["list", "data set"])
@pytest.mark.parametrize("kind", KINDS)
def test_calibration_refuses_the_first_anomalous_image(kind: str, wrap: str) -> None:
    good, data = samples(seed=1), WRAPPED[wrap](KINDS[kind](samples()))
    steps: list[int] = []
    counting = AfterEpoch(lambda *_: steps.append(1))
    with pytest.raises(DataError, match=r"^05.png must be normal"):
        fit(detector(), good, epochs=1, calibration=data, progress=False, callbacks=[counting])
    assert not steps
    made = detector()
    for call in (calibrate, semflow.calibrate):
        with pytest.raises(DataError, match=r"^05.png must be normal"):
            call(made, data)
        assert made.calibration.count == 0
    with pytest.raises(DataError, match=r"^05.png must be normal"):
        refit(made, good, calibration=data)
    with pytest.raises(DataError, match=r"^05.png must be normal"):
        remember(detector(), data)
    assert calibrate(made, data, allow_anomalous=True).calibration.count == 12
    assert refit(made, good, calibration=data, allow_anomalous=True).calibration.count == 12


def test_held_out_images_are_looked_at_too() -> None:
    with pytest.raises(DataError, match=r"^05.png must be normal"):
        fit(detector(), Lazy(with_label(samples())), epochs=1, calibration=10, false_alarm_rate=0.5, progress=False)


def test_unknown_labels_are_accepted() -> None:
    unknown = [sample._replace(label=-1, anomaly_mask=None) for sample in samples()]
    fit(detector(), unknown, epochs=1, progress=False)
    assert calibrate(detector(), unknown).calibration.count == 12


def test_data_set_of_files_is_refused_before_any_is_read() -> None:
    records = [Record(Path("a.png"), 0), Record(Path("crack.png"), 1)]
    for data in (ImageDataset(records, 32), Subset(ImageDataset([*records, *records], 32), [2, 3])):
        with pytest.raises(DataError, match=r"^crack.png must be normal, but got label 1"):
            fit(detector(), data, epochs=1, progress=False)
        with pytest.raises(DataError, match=r"^crack.png must be normal, but got label 1"):
            calibrate(detector(), data)


def test_calibration_on_a_test_split_is_refused(tmp_path: Path) -> None:
    """MVTec AD's test split has defects and good images."""
    rng = np.random.default_rng(0)
    for name in ("train/good/0", "test/good/0", "test/hole/0", "test/hole/1"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"hole.0.png must be normal, but got label 1, anomalous"):
        semflow.calibrate(detector(), open_dataset(tmp_path, "test", 32))
