"""Further metrics of an evaluation equal those of the functions, for one and several processes."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from semflow.data import Sample
from semflow.errors import ConfigError, ShapeError
from semflow.metrics import (
    Defect,
    ImageMetrics,
    aupimo,
    aupro,
    auroc,
    average_precision,
    calibration_error,
    f1,
    f1_max,
    spro,
)
from semflow.training import Evaluation, ImageResult, Processes, summarize
from semflow.training import pixels as pixels_module
from semflow.training.measures import NAMES, Measures
from semflow.training.pixels import Pixels

pytestmark = pytest.mark.filterwarnings("ignore:AUPIMO needs at least")

ASKED = (*NAMES, "aupro@0.05", "spro@0.3", "image_auroc")


class Labeled:
    """Data set whose anomalous images have two defects each, of which a few pixels suffice."""

    def __init__(self, results: list[ImageResult]) -> None:
        self.masks = {result.sample.path: result.sample.anomaly_mask for result in results}

    def defects(self, path: str) -> list[Defect]:
        mask = self.masks[path]
        first, second = mask.clone(), mask.clone()
        first[:, 10:], second[:, :10] = False, False
        return [Defect(first, 7.5), Defect(second, 20)]

    def part(self, path: str) -> str:
        return str((int(path.removesuffix(".png")) + 1) // 3)  # of images 5, 6 and 7, two show the defect


@pytest.fixture
def found() -> list[ImageResult]:
    rng = np.random.default_rng(3)
    results = []
    for k in range(12):
        mask = torch.zeros(24, 20, dtype=torch.bool)
        mask[4 : 8 + k, 5:15] = k >= 6
        mask[20:, :4] = k == 7  # in part outside of the region of interest
        anomaly_map = torch.from_numpy(rng.normal(size=mask.shape)).float() + 2 * mask
        anomaly_map[:, :2] = -torch.inf  # outside of the region of interest
        score, p_value = float(anomaly_map.max()), float(rng.random())
        sample = Sample(torch.zeros(3, 24, 20), int(k >= 6), mask, f"{k}.png")
        results.append(ImageResult(sample, score, anomaly_map, p_value, p_value < 0.5, anomaly_map > 1))
    return results


def summary(results: list[ImageResult], processes: int, names: tuple[str, ...] = ASKED) -> Evaluation:
    """Summarize as that many processes do, one after the other, each with its share of the results."""
    shared: list[object] = []

    class One(Processes):
        def gather_all(self, value: object) -> list[object]:
            shared.append(pickle.loads(pickle.dumps(value)))
            return list(shared)

    for rank in range(processes):  # the last one sees the data of all
        own = Measures(names, dataset=Labeled(results), images=len(results))
        found = summarize(results[rank::processes], One(), own)
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_measures_equal_the_functions(found: list[ImageResult], processes: int) -> None:
    of = summary(found, processes)
    numbers = of.as_dict()
    maps = [result.anomaly_map for result in found]
    inside = [one_map > -torch.inf for one_map in maps]
    masks = [result.sample.anomaly_mask for result in found]
    labels, scores = [result.sample.label for result in found], [result.score for result in found]
    pixels, truths = (torch.cat([x[i] for x, i in zip(xs, inside, strict=True)]) for xs in (maps, masks))
    data = Labeled(found)
    defects = [data.defects(result.sample.path) if result.sample.label else [] for result in found]
    errors = calibration_error([result.p_value for result in found if result.sample.label == 0])
    by_image = aupimo(maps, masks, inside=inside)
    parts = [[0, 1], [2, 3, 4], [5, 6, 7], [8, 9, 10], [11]]
    of_parts = [max(scores[k] for k in views) for views in parts]
    expected = {
        "part_auroc": auroc(of_parts, [0, 0, 1, 1, 1]),
        "image_average_precision": average_precision(scores, labels),
        "pixel_average_precision": average_precision(pixels, truths),
        "pixel_f1_max": f1_max(pixels, truths),
        "aupro": aupro(maps, masks, inside=inside),
        "aupro@0.05": aupro(maps, masks, 0.05, inside),
        "spro": spro(maps, defects, 0.05, inside),
        "spro@0.3": spro(maps, defects, 0.3, inside),
        "aupimo": by_image.mean,
        "class_f1": f1([result.is_anomalous for result in found], labels),
        "seg_f1": f1(pixels > 1, truths),
        **{f"calibration_{name}": value for name, value in errors._asdict().items()},
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(of.further) == set(ASKED) - {"image_auroc", "aupro"}
    assert of.aupimo_of_images == pytest.approx({f"{k}.png": by_image.of_images[k] for k in range(6, 12)}, abs=1e-12)
    assert not {"further", "aupimo_of_images"} & set(numbers)


def test_measures_of_many_pixels_are_counted_and_not_kept(
    found: list[ImageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = summary(found, 2).further
    for name, value in (("EXACT", 1000), ("BITS", 16), ("TOLERANCE", 1)):
        monkeypatch.setattr(pixels_module, name, value)
    counted = summary(found, 2)
    assert counted.further == pytest.approx(dict(exact), abs=0.01)
    assert counted.further["aupimo"] == exact["aupimo"]  # which keeps all scores that matter


def test_measures_of_unlabeled_pixels_are_none(found: list[ImageResult]) -> None:
    bare = [result._replace(sample=result.sample._replace(anomaly_mask=None)) for result in found]
    of = summary([*found[:6], *bare[6:]], 1)
    pixels = {"pixel_average_precision", "pixel_f1_max", "aupro@0.05", "spro", "spro@0.3", "aupimo", "seg_f1"}
    assert {name for name, value in of.further.items() if value is None} == pixels
    assert of.aupimo_of_images is None


def test_an_anomalous_image_whose_mask_vanished_is_no_normal_one(found: list[ImageResult]) -> None:
    lost = found[-1]._replace(sample=found[-1].sample._replace(anomaly_mask=torch.zeros(24, 20, dtype=torch.bool)))
    names = ("aupimo",)
    with_it, without = summary([*found[:-1], lost], 1, names), summary(found[:-1], 1, names)
    assert with_it.further == without.further
    assert "11.png" not in with_it.aupimo_of_images


def test_decisions_of_a_detector_without_calibration_are_missed(found: list[ImageResult]) -> None:
    raw = [result._replace(p_value=None, is_anomalous=None, mask=None) for result in found]
    with pytest.raises(ShapeError, match="p_values must be"):
        summary(raw, 1, ("calibration_error",))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("f1", r"^metrics must be among image_average_precision, .*, aupro@LIMIT and spro@LIMIT, but got 'f1'$"),
        ("aupimo@0.1", "but got 'aupimo@0.1'"),
        ("aupro@", "the limit of aupro must be a false-positive rate, but got 'aupro@'"),
        ("spro@0", r"fpr_limit must be in \(0, 1\], but got 0.0"),
        ("aupro@nan", r"fpr_limit must be in \(0, 1\], but got nan"),
    ],
)
def test_measures_reject_unknown_names(name: str, message: str) -> None:
    for names in ([name], name):
        with pytest.raises(ConfigError, match=message):
            Measures(names)
    with pytest.raises(ConfigError, match="names must be"):
        Measures([3])  # type: ignore[list-item]


def test_spro_of_a_subset_finds_the_defects_of_the_whole(found: list[ImageResult]) -> None:
    subset = Subset(Labeled(found), range(3))  # type: ignore[arg-type]
    measures = Measures("spro", dataset=subset)
    for sample, _, anomaly_map, *_ in found:
        measures.update(sample, anomaly_map)
    numbers, of_images = measures.compute(ImageMetrics(1, 1, 1), Pixels())
    assert numbers == pytest.approx(dict(summary(found, 1, ("spro",)).further))
    assert of_images is None


@pytest.mark.parametrize(
    ("name", "needed"), [("spro@0.1", "saturation thresholds, such as MVTecLOCO"), ("part_auroc", "several views")]
)
def test_some_measures_need_a_data_set_that_knows_more(name: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"only for a data set with {needed}.* but got list"):
        Measures(name, dataset=[])
