"""A recipe of this library as a model of anomalib."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from semflow.detectors import Detector
from semflow.errors import ShapeError
from semflow.recipes import build
from semflow.synthesis import CutPaste, SyntheticAnomalies
from semflow.training import TrainingConfig
from semflow.training.stepping import adam, train_on_batch

from .anomalib_base import AnomalibModule, InferenceBatch, OneClass, PreProcessor

__all__ = ["SemflowModule"]


class SemflowModule(OneClass):
    """A recipe of semflow in anomalib: `Engine().fit(SemflowModule("sanflow"), datamodule=data)`, `test`, `export`.

    It trains as `semflow.fit` does: standardisation is fitted first, with the recipe's loss, learning rate and schedule
    over the `max_epochs` of the Engine, synthetic anomalies where the recipe has them (their patches come from another
    image of the batch), and groups of locations where it trains on those. Before each validation, and at the end, the
    score's constants are taken from the training images. Images are resized to `image_size` and stay in [0, 1].

    A checkpoint holds the recipe's name and arguments: `SemflowModule.load_from_checkpoint(path)`.

    Args:
        recipe: a name of `semflow.recipes.RECIPES`.
        pre_processor, post_processor, evaluator, visualizer: anomalib's. A pre-processor of your own must leave images
            in [0, 1]: the detector normalises them itself.
        settings: of the recipe, see `semflow.recipes.build`. The Engine has its own number of epochs.

    Raises:
        ConfigError: no such recipe, or an argument does not fit.

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
        side = detector.provenance.image_size
        size = (side, side)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(size)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.model = _DetectorModel(detector)
        self.training_config: TrainingConfig = detector.provenance.training or TrainingConfig()
        # Groups of locations make many steps a batch.
        self.automatic_optimization = self.training_config.locations is None
        self.stale = False

    @property
    def detector(self) -> Detector:
        """The detector, which `semflow.detectors` takes as well."""
        detector: Detector = self.model.detector
        return detector

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> Any:
        """anomalib's default without its normalisation."""
        default = AnomalibModule.configure_pre_processor(image_size)
        return PreProcessor(transform=default.transform.transforms[0])

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The recipe's clipping, where Lightning makes the steps."""
        clip = self.training_config.clip if self.automatic_optimization else None
        return {"gradient_clip_val": clip or 0, "num_sanity_val_steps": 0}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's."""
        return adam(self.detector, self.training_config)

    def on_train_start(self) -> None:
        """Standardisation, before the first step ever."""
        if self.trainer.global_step == 0:
            self.detector.prepare(self._training_images())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The recipe's step, or steps."""
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
        """Thresholds are taken from the scores of a validation, which must be those of the finished detector."""
        self._fit_score()

    def on_train_epoch_end(self) -> None:
        """Where the last epoch has no validation; a checkpoint is written after this."""
        if self.trainer.should_stop or self.current_epoch + 1 == self.trainer.max_epochs:
            self._fit_score()

    def _fit_score(self) -> None:
        if self.stale:
            self.detector.fit_score(self._training_images())
            self.stale = False

    def _training_images(self) -> Iterator[Tensor]:
        """Batches of the training data in their order, without disturbing the loader that training goes through."""
        loader = self.trainer.train_dataloader
        again = DataLoader(loader.dataset, self.training_config.batch_size, collate_fn=loader.collate_fn)
        for batch in again:
            image = batch.image.to(self.device)
            transform = getattr(self.pre_processor, "transform", None)
            yield _check_range(image if transform is None else transform(image))


class _DetectorModel(nn.Module):
    """A detector with anomalib's way to answer; nothing in it changes modes, so that it can be exported."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Any:
        prediction = self.detector(images)
        return InferenceBatch(pred_score=prediction.score, anomaly_map=prediction.anomaly_map[:, None])


class _Image(NamedTuple):
    """What `SyntheticAnomalies` takes."""

    image: Tensor
    label: int = 0
    anomaly_mask: Tensor | None = None


def _with_anomalies(synthesis: CutPaste | None, seed: int, images: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
    """The batch with the recipe's kinds of anomalies pasted in, in equal parts over the steps, and their masks."""
    if synthesis is None:
        return images, None
    batch = [_Image(image) for image in images.detach().cpu().float()]
    source = SyntheticAnomalies(cast(Dataset[_Image], batch), synthesis, seed=seed)
    source.set_epoch(step)
    samples = [source[i] for i in range(len(batch))]
    masks = torch.stack([cast(Tensor, sample.anomaly_mask) for sample in samples])
    return torch.stack([sample.image for sample in samples]).to(images), masks.to(images.device)


def _check_range(images: Tensor) -> Tensor:
    low, high = (x.item() for x in images.aminmax())
    if not (math.isfinite(low) and low > -0.1 and high < 1.1):
        raise ShapeError(
            f"images must be in [0, 1], but got {low:.3g} to {high:.3g}: leave normalisation out of pre_processor, "
            "the detector does it"
        )
    return images.as_subclass(torch.Tensor)
