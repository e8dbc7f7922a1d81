"""Cross-conformal calibration: every normal image is trained on, and scored by a model that has not seen it.

A new image is scored by the model of all images. For distances to the nearest vectors of a whole memory the false-alarm
rate is then at most the nominal one: with the new image in the memory, all scores would be exchangeable, and it could
only have lowered the others. For other detectors, theory bounds the rate by twice the nominal one if the new image is
scored by the model without i where it is compared with image i (Barber et al., 2021: Predictive Inference with the
Jackknife+), which would take all these models for each prediction. `benchmarks.crossing` measures the rates.
"""

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from semflow._validation import counted
from semflow.detectors import Detector
from semflow.detectors.normal_scores import NormalScores
from semflow.errors import CheckpointError
from semflow.files import writing
from semflow.files.tensors import load_tensors, save_tensors

from .augmenting import Copies
from .cache import NormalImages
from .categories import positions_by_category
from .checkpoint import FOLDS as FILE
from .choice import optional_flows
from .config import TrainingConfig
from .distributed import ALONE
from .holdout import held_out_batches
from .loading import batches, dealt_batches
from .settling import settle

FOLDS = 5
LARGEST = 2**31  # values of a tensor in this file


def split_folds(images: int, seed: int = 0) -> list[list[int]]:
    """Deal the positions of images into five parts, or one for each of fewer images, by chance.

    >>> folds = split_folds(12)
    >>> [len(fold) for fold in folds], sorted(sum(folds, [])) == list(range(12))
    ([3, 3, 2, 2, 2], True)
    """
    # Training seeds its generators with three numbers, so these draws are independent.
    order = np.random.default_rng((seed, images, FOLDS, 2)).permutation(images).tolist()
    return [sorted(order[k::FOLDS]) for k in range(min(FOLDS, images))]


def is_trained(detector: Detector) -> bool:
    """Return True if a detector has parameters that are trained and used."""
    unused = {id(p) for flow in optional_flows(detector) if not flow.used for p in flow.parameters()}
    return any(id(p) not in unused for p in detector.trainable())


def leaves_one_out(detector: Detector, trained: bool = True) -> bool:
    """Return True if a detector itself scores an image that it was fitted to as if it had not seen it.

    Args:
        detector: detector, after the choice of its optional flows if it is fitted.
        trained: False if its parameters are not trained.

    >>> from semflow.recipes import Backbone, cflow_ad, padim
    >>> backbone = Backbone("test_efficientnet", "random", (4, 8, 16))
    >>> leaves_one_out(padim(backbone, 32)), leaves_one_out(cflow_ad(backbone, 32))
    (True, False)
    """
    unused = {id(x) for flow in optional_flows(detector) if not flow.used for x in flow.modules()}
    standardized = any(s is not None and id(s) not in unused for s in detector.flows.standardizers())
    whole = all(base.whole for base in detector.fitted_bases.values())
    return whole and not standardized and not (trained and is_trained(detector))


@dataclass(frozen=True)
class Crossing:
    """What a cross-conformal calibration needs beside the trained detector.

    If the detector `leaves_one_out`, it scores each image without what that has contributed, as `fit_score` does.
    Otherwise a fifth of the images at a time is scored by a model that is trained or fitted on the others in the same
    way.

    Args:
        detector: detector before training, which is copied.
        dataset: the normal images.
        training: settings of the training.
        train: trains a detector on a data set, with settings.
        workers: processes that load images.
        progress: show which model is trained.
        copies: changed copies of images to which bases are fitted, too.
    """

    detector: InitVar[Detector]
    dataset: Dataset[Any]
    training: TrainingConfig
    train: Callable[[Detector, Dataset[Any], TrainingConfig], Detector]
    workers: int = 0
    progress: bool = False
    copies: Copies | None = None
    untrained: Detector = field(init=False)

    def __post_init__(self, detector: Detector) -> None:
        object.__setattr__(self, "untrained", _copied(detector))

    @property
    def trained(self) -> bool:
        """True if there are gradient steps."""
        return bool(self.training.steps or self.training.epochs)

    def check(self, normal: NormalImages) -> None:
        """Raise DataError if what is to be trained has been trained on one of the images before."""
        known = set(self.untrained.provenance.fingerprints)
        if self.trained and known.intersection(normal.fingerprints()):
            for _ in held_out_batches(self.dataset, known, self.training.batch_size, self.workers, ALONE, True):
                pass

    def alone(self, detector: Detector) -> bool:
        """Return True if the trained detector needs no other models."""
        return leaves_one_out(detector, self.trained)

    def scores(self, detector: Detector, normal: NormalImages, folder: Path | None = None) -> NormalScores:
        """Return the scores of all images, in every process. A run directory keeps those of finished models."""
        processes = normal.processes
        if self.alone(detector):
            return detector.fit_score(normal, processes.gather)
        folds = self.folds()
        mark = {"training": asdict(self.training), "images": normal.fingerprint(), "folds": [len(f) for f in folds]}
        done = processes.first(lambda: _read(folder, mark))
        for number, held in enumerate(folds[len(done) :], len(done) + 1):
            if self.progress and processes.rank == 0 and self.trained and is_trained(detector):
                apart = f"without {counted(len(held), 'image')}"
                print(f"calibration: model {number} of {len(folds)}, {apart}", file=sys.stderr, flush=True)
            done.append(self._fold(detector, held, normal))
            processes.first(lambda: _write(folder, done, mark))
        order = torch.tensor([i for held in folds for i in held]).argsort()
        return NormalScores(*(x[order] for x in NormalScores.join(done)))

    def folds(self) -> list[list[int]]:
        """Return the positions of each fold, with a fifth of each category."""
        folds: list[list[int]] = [[] for _ in range(FOLDS)]
        for places in positions_by_category(self.dataset).values():
            for fold, own in zip(folds, split_folds(len(places), self.training.seed), strict=False):
                fold += [places[k] for k in own]
        return [sorted(fold) for fold in folds if fold]

    def _fold(self, detector: Detector, held: Sequence[int], normal: NormalImages) -> NormalScores:
        """Train a model on the other images, and return the scores of these."""
        model = _copied(self.untrained)
        for flow, chosen in zip(optional_flows(model), optional_flows(detector), strict=True):
            flow.use(chosen.used)
            flow.optional = False  # as in the detector: scores with and without a flow cannot be compared
        rest = sorted(set(range(normal.count)) - set(held))
        if self.trained and is_trained(detector):
            self.train(model, Subset(self.dataset, rest), self.training)
        else:
            with model.evaluating():
                part = self._part(normal, rest)
                model.prepare(part, normal.processes.gather)
                settle(model, part, self.copies)
        return model.eval().score_normal(self._part(normal, held), normal.processes.gather)

    def _part(self, normal: NormalImages, positions: Sequence[int]) -> NormalImages:
        """Return some of the images, with the maps that are kept of them."""
        size = self.training.batch_size
        parts = dealt_batches(len(positions), size, normal.processes)
        loader = batches(Subset(self.dataset, positions), size, self.workers, parts)

        def known(places: Sequence[int]) -> list[Tensor] | None:
            return normal.maps([positions[place] for place in places])

        return NormalImages(normal.features, loader, normal.device, 0, normal.processes, True, known)


def _copied(detector: Detector) -> Detector:
    """Return a copy of a detector that shares its features, which are frozen."""
    return copy.deepcopy(detector, {id(detector.features): detector.features})


def _read(folder: Path | None, mark: Mapping[str, Any]) -> list[NormalScores]:
    """Return the scores of the folds that are finished; none if the file is missing, damaged or of other folds."""
    if folder is None or not (folder / FILE).is_file():
        return []
    try:
        tensors, about = load_tensors(folder / FILE, {}, flexible={"": LARGEST})
    except CheckpointError:
        return []
    if about.get("mark") != _plain(mark):
        return []
    sizes = mark["folds"][: int(about["done"])]
    columns = [tensors[name].split(sizes) for name in NormalScores._fields]
    return [NormalScores(*part) for part in zip(*columns, strict=True)]


def _write(folder: Path | None, done: Sequence[NormalScores], mark: Mapping[str, Any]) -> None:
    if folder is not None:
        about = {"mark": _plain(mark), "done": len(done)}
        with writing(folder / FILE, "continue with resume", CheckpointError):
            save_tensors(folder / FILE, NormalScores.join(done)._asdict(), about)


def _plain(mark: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(mark))
