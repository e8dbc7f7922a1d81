"""Lightning modules for anomalib's `Engine`; importing this module imports anomalib."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset

from semflow._optional import import_optional
from semflow._validation import height_and_width
from semflow.bases import Base
from semflow.data import Sample
from semflow.detectors import Detector
from semflow.errors import ConfigError, ShapeError
from semflow.features.timm_module import load_timm
from semflow.functional import digamma_series, lgamma_series
from semflow.nn import VarianceHead
from semflow.objectives import Objective
from semflow.recipes import build
from semflow.synthesis import Synthesis, SyntheticAnomalies
from semflow.training import TrainingConfig
from semflow.training.stepping import adam, check_steps, train_on_batch

from .anomalib_models import ModelWithStatistics

load_timm()  # makes torchvision, which anomalib imports, importable beside a CPU build of torch
LearningType: Any = import_optional("anomalib").LearningType
AnomalibModule: Any = import_optional("anomalib.models.components").AnomalibModule
InferenceBatch: Any = import_optional("anomalib.data").InferenceBatch
PreProcessor: Any = import_optional("anomalib.pre_processing").PreProcessor


class _OneClass(AnomalibModule):  # type: ignore[misc]  # anomalib may be missing
    """Lightning module that trains on normal images, with anomalib's usual validation step."""

    learning_type = LearningType.ONE_CLASS

    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the batch with the model's predictions."""
        return batch.update(**self.model(batch.image)._asdict())

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """Call anomalib's ONNX export, which its OpenVINO export uses too, without digamma and lgamma in the graph."""
        kwargs.setdefault("opset_version", 18)  # torch's exporter writes no older version
        with _ElementarySpecialFunctions():
            return super().to_onnx(*args, **kwargs)


class _ElementarySpecialFunctions(TorchFunctionMode):
    """Replace digamma and lgamma, which ONNX lacks, by series while a graph is traced."""

    series: ClassVar[dict[Any, Callable[..., Tensor]]] = {
        torch.digamma: digamma_series,
        torch.special.digamma: digamma_series,
        torch.lgamma: lgamma_series,
    }

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function: Callable[..., Any] = self.series.get(func, func)
        return function(*args, **(kwargs or {}))


class SemflowModule(_OneClass):
    """Lightning module of a recipe: `Engine().fit(SemflowModule("sanflow"), datamodule=data)`, `test`, `export`.

    It trains as `semflow.fit` does: it fits the standardization, then minimizes the recipe's loss with the recipe's
    learning rate and schedule over the Engine's `max_epochs`, with synthetic anomalies (whose patches come from another
    image of the batch) and groups of locations if the recipe has them. It fits the score to the training images before
    each validation and at the end. Images are resized to the recipe's `image_size` and stay in [0, 1].

    A checkpoint holds the recipe's name and settings: `SemflowModule.load_from_checkpoint(path)`.

    Args:
        recipe: a name of `semflow.recipes.RECIPES`.
        pre_processor: anomalib's; your own must leave images in [0, 1], since the detector normalizes them itself.
        post_processor, evaluator, visualizer: anomalib's.
        settings: settings of the recipe, see `semflow.recipes.build`. The number of epochs is the Engine's.

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
            pre_processor = self.configure_pre_processor(height_and_width(detector.provenance.image_size))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.model = _DetectorModel(detector)
        self.training_config: TrainingConfig = detector.provenance.training or TrainingConfig()
        # Groups of locations take many steps per batch, so this module steps the optimizer itself.
        self.automatic_optimization = self.training_config.locations is None
        self.stale = False

    @property
    def detector(self) -> Detector:
        """The detector."""
        return self.model.detector

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> Any:
        """Return anomalib's default without its normalization."""
        default = AnomalibModule.configure_pre_processor(image_size)
        return PreProcessor(transform=default.transform.transforms[0])

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The recipe's gradient clipping, unless this module steps the optimizer itself, accumulation and precision."""
        training = self.training_config
        clip = training.clip if self.automatic_optimization else None
        more: dict[str, Any] = {"accumulate_grad_batches": training.accumulate} if training.accumulate > 1 else {}
        more |= {"precision": "bf16-mixed"} if training.precision == "bf16" else {}
        return {"gradient_clip_val": clip or 0, "num_sanity_val_steps": 0, **more}

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return the recipe's optimizer, or None if nothing is trained."""
        fused = "mixed" not in str(self.trainer.precision)  # Lightning does not clip gradients for it
        return adam(self.detector, self.training_config, fused) if self.detector.trainable() else None

    def on_train_start(self) -> None:
        """Fit the standardization, unless training is resumed; raise ConfigError for a precision that is not known."""
        if "bf16" in str(self.trainer.precision):
            check_steps(self.detector, replace(self.training_config, precision="bf16"))
        if self.trainer.global_step == 0:
            self.detector.prepare(self._training_images())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, or make the recipe's steps of groups of locations and return None."""
        detector, training = self.detector, self.training_config
        images, self.stale = _check_range(batch.image), True
        if not detector.trainable():
            return torch.zeros((), requires_grad=True)  # so that Lightning counts a step and writes a checkpoint
        steps = max(1, int(self.trainer.num_training_batches))
        step = self.current_epoch * steps + batch_idx
        epochs = self.trainer.max_epochs if (self.trainer.max_epochs or 0) > 0 else training.epochs
        optimizer = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(min(1.0, step / (steps * epochs)))
        images, masks = _with_anomalies(detector.provenance.synthesis, training.seed, images, step)
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
            self.detector.fit_base(self._training_images())
            self.detector.fit_score(self._training_images())
            self.stale = False

    def _training_images(self) -> Iterator[Tensor]:
        """Yield the training images in their order, from a loader of its own."""
        loader = self.trainer.train_dataloader
        transform = getattr(self.pre_processor, "transform", None)
        for batch in DataLoader(loader.dataset, self.training_config.batch_size, collate_fn=loader.collate_fn):
            image = batch.image.to(self.device)
            yield _check_range(image if transform is None else transform(image))


class _DetectorModel(nn.Module):
    """A detector that returns anomalib's predictions."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Any:
        prediction = self.detector(images)
        return InferenceBatch(pred_score=prediction.score, anomaly_map=prediction.anomaly_map[:, None])


def _with_anomalies(synthesis: Synthesis | None, seed: int, images: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
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


class StatisticsModule(_OneClass):
    """Lightning module that trains a `Fastflow` or `Cflow` of anomalib with predicted statistics in an `Engine`.

    It minimizes `ModelWithStatistics.loss`, one step per batch, with the model's own optimizer, and scores with
    `anomaly_map`, an image by its maximum. Processors, evaluator and visualizer are the model's. Only its flows are
    changed: they are trained.

    A checkpoint holds the weights: `StatisticsModule.load_from_checkpoint(path, model=..., head=...)`.

    Args:
        model: a `Fastflow` or `Cflow`.
        head, base, objective: see `semflow.with_statistics`.

    Example:
        >>> from anomalib.models import Fastflow
        >>> from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance
        >>> fastflow = Fastflow(pre_trained=False, flow_steps=1)
        >>> networks = [FeatureStatisticsNetwork(channels) for channels in (64, 128, 256)]
        >>> module = StatisticsModule(fastflow, InverseGammaVariance(networks, mode=1.0))
        >>> module.eval()(torch.rand(1, 3, 80, 80)).anomaly_map.shape
        torch.Size([1, 1, 256, 256])
    """

    def __init__(
        self, model: Any, head: VarianceHead | None, base: Base | None = None, objective: Objective | None = None
    ) -> None:
        if not isinstance(model, AnomalibModule):
            raise ConfigError(
                f"model must be a Fastflow or Cflow of anomalib, but got {type(model).__name__}; call with_statistics "
                "for a torch model"
            )
        parts = (model.pre_processor, model.post_processor, model.evaluator, model.visualizer)
        super().__init__(*(False if part is None else part for part in parts))
        self.model = _StatisticsModel(ModelWithStatistics(model, head, base, objective))
        self.own_trainer_arguments = dict(model.trainer_arguments)
        self.own_optimizer = model.configure_optimizers

    def save_hyperparameters(self, *args: Any, ignore: Any = (), frame: Any = None, **kwargs: Any) -> None:
        """Save no modules as hyperparameters."""
        frame = frame or cast(Any, inspect.currentframe()).f_back
        names = [*([ignore] if isinstance(ignore, str) else ignore), "model", "head", "base", "objective"]
        super().save_hyperparameters(*args, ignore=names, frame=frame, **kwargs)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments of the model."""
        return dict(self.own_trainer_arguments)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the model's own optimizer with the parameters of the head added."""
        optimizer = cast(torch.optim.Optimizer, self.own_optimizer())
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if added := [p for p in self.model.statistics.trainable() if id(p) not in known]:
            optimizer.add_param_group({"params": added})
        return optimizer

    def training_step(self, batch: Any, *args: Any) -> Tensor:
        """Compute the loss of a batch."""
        terms = self.model.statistics.loss(batch.image)
        for name, value in terms._asdict().items():
            name = "loss" if name == "total" else name
            self.log(f"train_{name}", value.detach(), on_epoch=True, prog_bar=True, batch_size=len(batch.image))
        return terms.total


class _StatisticsModel(nn.Module):
    """A `ModelWithStatistics` that returns anomalib's predictions."""

    def __init__(self, statistics: ModelWithStatistics) -> None:
        super().__init__()
        self.statistics = statistics

    def forward(self, images: Tensor) -> Any:
        anomaly_map = self.statistics.anomaly_map(images)
        return InferenceBatch(pred_score=anomaly_map.amax((1, 2)), anomaly_map=anomaly_map[:, None])
