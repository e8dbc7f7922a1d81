"""Features, training and metrics, the same for all rows."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from semflow._channels import in_color
from semflow.data import Categories, open_dataset
from semflow.detectors import Scorer
from semflow.metrics import image_metrics, pixel_metrics
from semflow.recipes import Backbone
from semflow.recipes.groups import build_features
from semflow.synthesis import CutPaste, Poisson
from semflow.training import TrainingConfig

from .plain import PlainFlow
from .synthetic import Kind, synthesis

BATCH, LEARNING_RATE, CLIP, TOP = 8, 2e-3, 1e4, 0.01
COPIES = 3  # of each training image with synthetic anomalies of a kind
BACKBONE = Backbone("tf_efficientnet_lite0", "packaged", (8, 16, 32), smoothing=3)


class Made(NamedTuple):
    """Feature maps of copies of all training images with synthetic anomalies, and their masks (n, H, W).

    Copies of image i are in rows i, i + (number of images), and so on.
    """

    maps: list[Tensor]
    masks: Tensor


class Images(NamedTuple):
    """Feature maps of the images of one category; of test images, their labels and masks; of training images, copies.

    The copies are by kind of synthetic anomalies.
    """

    maps: list[Tensor]
    labels: Tensor
    masks: Tensor
    made: dict[str, Made]


def read(data: Path, size: int) -> tuple[list[int], dict[str, Images], dict[str, Images]]:
    """Return the channels of the features, and the training and test images of each category."""
    features = build_features(BACKBONE, size, seed=0)
    found: list[dict[str, Images]] = []
    for split in ("train", "test"):
        dataset = open_dataset(data, split, size, categories="all", cache=True)
        assert isinstance(dataset, Categories)
        kinds = get_args(Kind) if split == "train" else ()
        found.append({name: _images(features, name, part, size, kinds) for name, part in dataset.parts.items()})
    return list(features.channels), found[0], found[1]


def _images(features: Any, name: str, part: Any, size: int, kinds: Sequence[Kind]) -> Images:
    samples = [part[i] for i in range(len(part))]
    masks = [torch.zeros(size, size) if s.anomaly_mask is None else s.anomaly_mask for s in samples]
    labels = torch.tensor([sample.label for sample in samples])
    images = [in_color(sample.image) for sample in samples]
    made = {kind: _made(features, images, synthesis(kind, name)) for kind in kinds}
    return Images(_maps(features, images), labels, torch.stack(masks), made)


@torch.no_grad()
def _maps(features: Any, images: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat(scale) for scale in zip(*(features(image[None]) for image in images), strict=True)]


def _made(features: Any, images: Sequence[Tensor], kind: CutPaste | Poisson) -> Made:
    rng = np.random.default_rng(0)
    made, masks = [], []
    for k in range(COPIES * len(images)):
        donor = images[int(rng.integers(len(images)))]
        image, mask = kind(images[k % len(images)], donor, kind.kinds[int(rng.integers(len(kind.kinds)))], rng)
        made.append(image)
        masks.append(mask)
    return Made(_maps(features, made), torch.stack(masks).float())


class Copies:
    """The copies with synthetic anomalies of the images of all parts.

    Args:
        parts: training images by category.
        kind: of synthetic anomalies.
    """

    def __init__(self, parts: Mapping[str, Images], kind: str) -> None:
        self.parts = [(part.made[kind], row) for part in parts.values() for row in range(len(part.labels))]
        self.counts = [len(part.labels) for part in parts.values() for _ in range(len(part.labels))]

    def enter(self, batch: Sequence[Tensor], rows: Sequence[int], rng: np.random.Generator) -> Tensor:
        """Put copies in the place of the second half of a batch, and return the masks of its anomalies (B, H, W)."""
        masks = torch.zeros(len(rows), *self.parts[0][0].masks.shape[1:])
        for at in range(len(rows) // 2, len(rows)):
            made, row = self.parts[rows[at]]
            row += int(rng.integers(COPIES)) * self.counts[rows[at]]
            masks[at] = made.masks[row]
            for x, copies in zip(batch, made.maps, strict=True):
                x[at] = copies[row]
        return masks


def trained(
    build: Callable[[], PlainFlow], parts: Mapping[str, Images], steps: int, seed: int
) -> tuple[PlainFlow, Scorer]:
    """Return a model of the images of all parts, and its score, whose constants are of the same images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        counts = [len(part.labels) for part in parts.values()]
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        maps = [torch.cat(scale) for scale in zip(*(part.maps for part in parts.values()), strict=True)]
        maps = model.prepare(maps, labels)
        copies = Copies(parts, model.synthesis) if model.synthesis else None
    config = TrainingConfig(learning_rate=LEARNING_RATE)
    parameters = [*model.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for step in range(steps if model.trains else 0):
        if len(order) < BATCH:
            order += rng.permutation(len(labels)).tolist()
        rows, order = order[:BATCH], order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step / steps)
        optimizer.zero_grad(set_to_none=True)
        batch = [x[rows] for x in maps]
        masks = copies.enter(batch, rows, rng) if copies else None
        model.loss(batch, labels[rows], masks).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, error_if_nonfinite=True)
        optimizer.step()
    model.eval()
    scorer = Scorer(len(maps), top=TOP)
    scorer.set_maxima([float(x.max()) for x in per_dimension(model, log_probs(model, maps))])
    return model, scorer


@torch.no_grad()
def log_probs(model: PlainFlow, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return log p at each location of maps that the flow sees, (B, H, W) for each scale, in nats."""
    chunks = zip(*(x.split(BATCH) for x in maps), strict=True)
    return [torch.cat(scale) for scale in zip(*(model.log_probs(chunk) for chunk in chunks), strict=True)]


def per_dimension(model: PlainFlow, found: Sequence[Tensor]) -> list[Tensor]:
    """Divide log p of each scale by the number of its latents' channels."""
    return [x / width for x, width in zip(found, model.widths, strict=True)]


def evaluated(model: PlainFlow, scorer: Scorer, part: Images) -> dict[str, float]:
    """Return the metrics of test images, and -log p of the good ones in nats per dimension of the features."""
    found = log_probs(model, model.seen(part.maps))
    maps, scores = scorer(per_dimension(model, found), (part.masks.shape[1], part.masks.shape[2]))
    image, pixel = image_metrics(scores, part.labels), pixel_metrics(maps, part.masks)
    total = torch.stack([x.flatten(1).sum(1) for x in found]).sum(0)[part.labels == 0]
    metrics = {"image_auroc": image.auroc, "pixel_auroc": pixel.auroc, "aupro": pixel.aupro}
    metrics["nll"] = -float(total.mean()) / sum(x[0].numel() for x in part.maps)
    return {name: round(value, 5) for name, value in metrics.items()}


def measure(
    build: Callable[[], PlainFlow],
    kind: str,
    train: Mapping[str, Images],
    test: Mapping[str, Images],
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of each category by models of one kind.

    `separate` is a model for each category, `joint` one for all, which is not told the category, `joint, told` one that
    stores vectors of the tested category only, and `left out` such a model of the other categories for each.

    Args:
        build: returns an untrained model.
        kind: of the models.
        train: training images by category.
        test: test images by category.
        steps: optimizer steps for each category that a model is trained on.
        seed: of weights and the order of the images.
    """
    start = time.process_time()
    found: dict[str, Any] = {}
    notes = []
    for tested in [[*train]] if kind.startswith("joint") else [[name] for name in train]:
        used = [name for name in train if name not in tested] if kind == "left out" else tested
        model, scorer = trained(build, {name: train[name] for name in used}, steps * len(used), seed)
        for name in tested:
            if kind in ("joint, told", "left out"):
                model.refer(train[name].maps)
            found[name] = evaluated(model, scorer, test[name])
        notes.append(model.notes())
    more = {name: [note[name] for note in notes] for name in notes[0]}
    return {"categories": found, "seconds": round(time.process_time() - start, 1), **more}
