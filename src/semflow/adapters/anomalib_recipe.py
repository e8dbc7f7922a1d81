"""Recipes of this library in anomalib's `Engine`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from semflow.data import Sample
from semflow.detectors import Detector
from semflow.errors import ShapeError
from semflow.recipes import build
from semflow.synthesis import CutPaste, SyntheticAnomalies
from semflow.training import TrainingConfig
from semflow.training.stepping import adam, train_on_batch

from .anomalib_base import AnomalibModule, InferenceBatch, OneClass, PreProcessor

__all__ = ["SemflowModule"]


class SemflowModule(OneClass):
    """Lightning module of a recipe: `Engine().fit(SemflowModule("sanflow"), datamodule=data)`, `test`, `export`.

    It trains as `semflow.fit` does: it fits the standardization, then minimizes the recipe's loss with the recipe's
    learning rate and schedule over the Engine's `max_epochs`, with synthetic anomalies (whose patches come from another
    image of the batch) and groups of locations if the recipe has them. It fits the score to the training images before
    each validation and at the end. Images are resized to the recipe's `image_size` and stay in [0, 1].

    A checkpoint holds the recipe's name and settings: `SemflowModule.load_from_checkpoint(path)`.

    Args:
        recipe: a name of `semflow.recipes.RECIPES`.
        pre_processor: anomalib's; your own must leave images in [0, 1], since the detector normalizes them itself.
        post_processor: anomalib's.
        evaluator: anomalib's.
        visualizer: anomalib's.
        settings: settings of the recipe, see `semflow.recipes.build`. The number of epochs is the Engine's.

    Raises:
        ConfigError: unknown recipe, or an invalid setting.

    Example:
        >>> small = {"backbone": "resnet18", "backbone.weights": "random", "couplings.blocks": 1, "image_size": 64}
        >>> module = SemflowModule("sanflow", settings=small)
        >>> module.eval()(torch.rand(1, 3, 80, 80)).anomaly_map.shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(
        self,
        recipe: str = "sanflow",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Any = True,
        visualizer: Any = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        detector = build(recipe, settings)
        if pre_processor is True:
            side = detector.provenance.image_size
            pre_processor = self.configure_pre_processor((side, side))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.model = _DetectorModel(detector)
        self.training_config: TrainingConfig = detector.provenance.training or TrainingConfig()
        # Groups of locations take many steps per batch, so this module steps the optimizer itself.
        self.automatic_optimization = self.training_config.locations is None
        self.stale = False

    @property
    def detector(self) -> Detector:
        """The detector."""
        detector: Detector = self.model.detector
        return detector

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> Any:
        """Return anomalib's default without its normalization."""
        default = AnomalibModule.configure_pre_processor(image_size)
        return PreProcessor(transform=default.transform.transforms[0])

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The recipe's gradient clipping, unless this module steps the optimizer itself."""
        clip = self.training_config.clip if self.automatic_optimization else None
        return {"gradient_clip_val": clip or 0, "num_sanity_val_steps": 0}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the recipe's optimizer."""
        return adam(self.detector, self.training_config)

    def on_train_start(self) -> None:
        """Fit the standardization, unless training is resumed."""
        if self.trainer.global_step == 0:
            self.detector.prepare(self._training_images())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, or make the recipe's steps of groups of locations and return None."""
        detector, training = self.detector, self.training_config
        images = _check_range(batch.image)
        steps = max(1, int(self.trainer.num_training_batches))
        step = self.current_epoch * steps + batch_idx
        epochs = self.trainer.max_epochs if (self.trainer.max_epochs or 0) > 0 else training.epochs
        optimizer = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(min(1.0, step / (steps * epochs)))
        images, masks = _with_anomalies(detector.provenance.synthesis, training.seed, images, step)
        self.stale = True
        if self.automatic_optimization:
            terms = detector.loss(images, masks, None, training.mask_resize, training.guard)
            self.log("train_loss", terms.total.detach(), on_epoch=True, prog_bar=True, batch_size=len(images))
            return terms.total
        values = train_on_batch(detector, optimizer, training, images, masks, None, (training.seed, step))
        self.log("train_loss", values[0], on_epoch=True, prog_bar=True, batch_size=len(images))
        return None

    def on_validation_start(self) -> None:
        """Fit the score, since anomalib takes thresholds from the scores of the validation."""
        self._fit_score()

    def on_train_epoch_end(self) -> None:
        """Fit the score after the last epoch, before the checkpoint is written: it may end without a validation."""
        if self.trainer.should_stop or self.current_epoch + 1 == self.trainer.max_epochs:
            self._fit_score()

    def _fit_score(self) -> None:
        if self.stale:
            self.detector.fit_score(self._training_images())
            self.stale = False

    def _training_images(self) -> Iterator[Tensor]:
        """Yield the training images in their order, from a loader of its own."""
        loader = self.trainer.train_dataloader
        again = DataLoader(loader.dataset, self.training_config.batch_size, collate_fn=loader.collate_fn)
        for batch in again:
            image = batch.image.to(self.device)
            transform = getattr(self.pre_processor, "transform", None)
            yield _check_range(image if transform is None else transform(image))


class _DetectorModel(nn.Module):
    """A detector that returns anomalib's predictions."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Any:
        prediction = self.detector(images)
        return InferenceBatch(pred_score=prediction.score, anomaly_map=prediction.anomaly_map[:, None])


def _with_anomalies(synthesis: CutPaste | None, seed: int, images: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
    """Paste the recipe's kinds of anomalies into a batch, in equal parts over the steps; return images and masks."""
    if synthesis is None:
        return images, None
    batch = [Sample(image, 0, None, "") for image in images.detach().cpu().float()]
    source = SyntheticAnomalies(cast(Dataset[Sample], batch), synthesis, seed=seed)
    source.set_epoch(step)
    samples = [source[i] for i in range(len(batch))]
    masks = torch.stack([cast(Tensor, sample.anomaly_mask) for sample in samples])
    return torch.stack([sample.image for sample in samples]).to(images), masks.to(images.device)


def _check_range(images: Tensor) -> Tensor:
    low, high = (x.item() for x in images.aminmax())
    if not (math.isfinite(low) and low > -0.1 and high < 1.1):
        raise ShapeError(
            f"images must lie in [0, 1], but got values from {low:.3g} to {high:.3g}; leave normalization out of "
            "pre_processor, since the detector normalizes"
        )
    return images.as_subclass(torch.Tensor)
