"""Bad input: tensors for a detector, its loss, its score and the metrics."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from helpers.bad_rows import SIZE, Row, Works, Workspace, batch, refused
from semflow import metrics
from semflow.data import Sample, collate
from semflow.detectors import Scorer
from semflow.errors import ConfigError, DataError, ShapeError
from semflow.flows import Standardize
from semflow.synthesis import CutPaste, SyntheticAnomalies

__all__ = ["TENSORS"]


def given(change: Callable[[Tensor], object]) -> Callable[[Workspace], object]:
    """Score a changed batch."""
    return lambda workspace: workspace.detector.predict(change(batch())).score


def same(change: Callable[[Tensor], Tensor], tolerance: float = 0.0) -> Callable[[Workspace], object]:
    """Check that a changed batch has the scores of the original."""

    def act(workspace: Workspace) -> object:
        expected = workspace.detector.predict(batch()).score
        found = workspace.detector.predict(change(batch())).score
        return bool(((found - expected).abs() <= tolerance * expected.abs()).all())

    return act


def with_pixel(value: float) -> Callable[[Tensor], Tensor]:
    def change(images: Tensor) -> Tensor:
        images[1, 2, 3, 4] = value
        return images

    return change


def masked(mask: Tensor) -> Callable[[Workspace], object]:
    return lambda workspace: workspace.detector.loss(batch(), mask).total


def all_anomalous(workspace: Workspace) -> object:
    return bool(workspace.detector.loss(batch(), torch.ones(2, SIZE, SIZE)).total.isfinite())


def mask_of_255(workspace: Workspace) -> object:
    marked = torch.zeros(2, SIZE, SIZE)
    marked[:, 8:24, 8:24] = 1
    one, many = (workspace.detector.loss(batch(), mask).total for mask in (marked, (marked * 255).byte()))
    return bool(one == many)


def scored(*maps: Tensor, size: tuple[int, int] = (16, 16)) -> Callable[[Workspace], object]:
    return lambda _: Scorer(2)(list(maps), size)[1]


def constant_images(workspace: Workspace) -> object:
    prediction = workspace.detector.predict(torch.full((2, 3, SIZE, SIZE), 0.5))
    return bool(prediction.score.isfinite().all() and prediction.score[0] == prediction.score[1])


def constant_features(_: Workspace) -> object:
    flow = Standardize(3).fit([torch.full((2, 3, 4, 4), 7.0)])
    z, log_det = flow(torch.full((1, 3, 4, 4), 7.0))
    return z.abs().max().item(), log_det.abs().max().item()


def one_dead_channel(_: Workspace) -> object:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 7.0
    z, _ = Standardize(3).fit([x])(x)
    return z[:, 1].abs().max().item(), round(z[:, 0].std(correction=0).item(), 5)


def normal(count: int) -> list[Sample]:
    return [Sample(image, 0, None, f"{index}.png") for index, image in enumerate(batch(count))]


def synthesis_of_one(_: Workspace) -> object:
    sample = SyntheticAnomalies(normal(1))[0]
    return bool(sample.image.isfinite().all())


def donor(change: Callable[[Tensor], Tensor]) -> Callable[[Workspace], object]:
    def act(_: Workspace) -> object:
        image = batch(1)[0]
        return CutPaste()(image, change(image), "small", np.random.default_rng(0))

    return act


RANKS = torch.tensor([0.1, 0.4, 0.35, 0.8])
LABELS = torch.tensor([0, 0, 1, 1])

TENSORS = [
    Row("one NaN in a batch", given(with_pixel(torch.nan)), refused(ShapeError, "images", "nan", "remove images")),
    Row("one infinite pixel", given(with_pixel(torch.inf)), refused(ShapeError, "images", "inf", "remove images")),
    Row("pixels from 0 to 255", given(lambda x: x * 255), refused(ShapeError, "[0, 1]", "divide bytes by 255")),
    Row("normalized pixels", given(lambda x: (x - 0.45) / 0.22), refused(ShapeError, "[0, 1]", "normali")),
    Row("pixels slightly above 1 by rounding", same(lambda x: x * (1 + 1e-7), 1e-5), Works("the same score")),
    Row("uint8 images", given(lambda x: (x * 255).byte()), refused(ShapeError, "must be float", "torch.uint8")),
    Row("complex images", given(lambda x: x + 0j), refused(ShapeError, "must be float", "complex64")),
    Row(
        "float64 images", given(lambda x: x.double()), refused(ShapeError, "torch.float32", "torch.float64", "convert")
    ),
    Row("image without batch dimension", given(lambda x: x[0]), refused(ShapeError, "(B, C, H, W)", "(3, 64, 64)")),
    Row("five dimensions", given(lambda x: x[None]), refused(ShapeError, "(1, 2, 3, 64, 64)")),
    Row("five channels", given(lambda x: x[:, [0, 1, 2, 0, 1]]), refused(ShapeError, "(2, 5, 64, 64)")),
    Row("four channels", given(lambda x: torch.cat((x, x[:, :1]), 1)), refused(ShapeError, "(2, 4, 64, 64)")),
    Row("channels last shape", given(lambda x: x.permute(0, 2, 3, 1)), refused(ShapeError, "(2, 64, 64, 3)")),
    Row("empty batch", given(lambda x: x[:0]), refused(ShapeError, "at least one image", "(0, 3, 64, 64)")),
    Row("images with zero rows", given(lambda x: x[:, :, :0]), refused(ShapeError, "one pixel", "(2, 3, 0, 64)")),
    Row("NumPy array", given(lambda x: x.numpy()), refused(ShapeError, "must be a tensor", "ndarray")),
    Row("list", given(lambda x: [x]), refused(ShapeError, "must be a tensor", "list")),
    Row(
        "images on another device", given(lambda x: x.to("meta")), refused(ShapeError, "cpu, but got meta", "move them")
    ),
    Row(
        "images that are not contiguous",
        same(lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), 1e-6),
        Works("the same score"),
    ),
    Row(
        "strided view",
        same(lambda x: x.repeat_interleave(2, 3)[..., ::2], 1e-6),
        Works("the same score"),
    ),
    Row(
        "expanded image",
        lambda workspace: workspace.detector.predict(batch(1).expand(3, -1, -1, -1)).score.unique().numel(),
        Works("equal scores", 1),
    ),
    Row(
        "images that require a gradient",
        lambda workspace: workspace.detector.predict(batch().requires_grad_()).score.requires_grad,
        Works("scores without a gradient", False),
    ),
    Row("constant images", constant_images, Works("equal finite scores")),
    Row("features without variance", constant_features, Works("z = 0, log-det 0", (0.0, 0.0))),
    Row(
        "one feature without variance",
        one_dead_channel,
        Works("z = 0 there; other channels are unaffected", (0.0, 1.0)),
    ),
    Row(
        "features with NaN",
        lambda _: Standardize(2).fit([torch.full((1, 2, 4, 4), torch.nan)]),
        refused(DataError, "finite"),
    ),
    Row("no feature map", lambda _: Standardize(2).fit([]), refused(ShapeError, "at least one feature map")),
    Row("mask of another size", masked(torch.zeros(2, 32, 32)), refused(ShapeError, "anomaly_masks", "(2, 64, 64)")),
    Row("mask off by one pixel", masked(torch.zeros(2, SIZE, SIZE - 1)), refused(ShapeError, "(2, 64, 63)")),
    Row(
        "mask of another batch", masked(torch.zeros(3, SIZE, SIZE)), refused(ShapeError, "anomaly_masks", "(3, 64, 64)")
    ),
    Row("mask with a channel dimension", masked(torch.zeros(2, 1, SIZE, SIZE)), refused(ShapeError, "(2, 1, 64, 64)")),
    Row("mask with NaN", masked(torch.full((2, SIZE, SIZE), torch.nan)), refused(ShapeError, "anomaly_masks", "NaN")),
    Row("mask of 0 and 255", mask_of_255, Works("same as 0 and 1")),
    Row("mask that is all anomalous", all_anomalous, Works("a finite loss")),
    Row(
        "loss of an empty batch",
        lambda workspace: workspace.detector.loss(batch()[:0]).total,
        refused(ShapeError, "at least one"),
    ),
    Row("too few maps to score", scored(torch.zeros(2, 4, 4)), refused(ShapeError, "must be 2 maps")),
    Row(
        "maps of different batches",
        scored(torch.zeros(2, 4, 4), torch.zeros(1, 4, 4)),
        refused(ShapeError, "of one batch"),
    ),
    Row("maps with a channel dimension", scored(*[torch.zeros(2, 1, 4, 4)] * 2), refused(ShapeError, "(B, H, W)")),
    Row("score map with zero pixels", scored(*[torch.zeros(2, 4, 4)] * 2, size=(0, 4)), refused(ShapeError, "size")),
    Row(
        "log-probabilities of -inf",
        lambda _: bool(Scorer(2)([torch.full((1, 4, 4), -torch.inf)] * 2, (8, 8))[1].isfinite().all()),
        Works("finite score"),
    ),
    Row(
        "metrics of NaN",
        lambda _: metrics.auroc([0.1, float("nan")], [0, 1]),
        refused(ShapeError, "scores", "1 NaN in 2"),
    ),
    Row(
        "metrics of one label only",
        lambda _: metrics.auroc(RANKS, torch.zeros(4)),
        refused(ShapeError, "labels", "0 anomalous"),
    ),
    Row(
        "metrics of labels 0 and 255",
        lambda _: metrics.auroc(RANKS, LABELS * 255),
        refused(ShapeError, "labels", "255"),
    ),
    Row("metrics without scores", lambda _: metrics.auroc([], []), refused(ShapeError, "0 normal and 0 anomalous")),
    Row(
        "scores and labels of different lengths",
        lambda _: metrics.auroc(RANKS, LABELS[:3]),
        refused(ShapeError, "must have one shape"),
    ),
    Row("metrics of strings", lambda _: metrics.auroc(["a", "b"], [0, 1]), refused(ShapeError, "real numbers")),
    Row(
        "metrics of infinite scores",
        lambda _: metrics.auroc([-np.inf, np.inf], [0, 1]),
        Works("ranked like finite scores", 1.0),
    ),
    Row(
        "AUPRO with masks of another size",
        lambda _: metrics.aupro(torch.zeros(4, 4), torch.zeros(4, 5)),
        refused(ShapeError, "(4, 5)"),
    ),
    Row(
        "AUPRO without a normal pixel",
        lambda _: metrics.aupro(torch.rand(4, 4), torch.ones(4, 4)),
        refused(ShapeError, "0 normal"),
    ),
    Row(
        "AUPRO with fpr_limit 0",
        lambda _: metrics.aupro(torch.rand(4, 4), torch.eye(4), 0.0),
        refused(ConfigError, "fpr_limit"),
    ),
    Row("batch without samples", lambda _: collate([]), refused(ShapeError, "at least one sample")),
    Row(
        "batch with two image sizes",
        lambda _: collate([*normal(1), Sample(torch.zeros(3, 8, 8), 0, None, "odd.png")]),
        refused(ShapeError, "one size", "odd.png"),
    ),
    Row("synthesis from one image", synthesis_of_one, Works("the image is its own donor")),
    Row("synthesis without images", lambda _: SyntheticAnomalies([]), refused(DataError, "at least one image")),  # type: ignore[arg-type]
    Row("synthesis with a uint8 donor", donor(lambda x: (x * 255).byte()), refused(ShapeError, "donor", "torch.uint8")),
    Row("synthesis with two image sizes", donor(lambda x: x[:, :32]), refused(ShapeError, "one size", "(3, 32, 64)")),
]
