"""Statistics prediction for anomalib's own flows in anomalib's `Engine`."""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from semflow.bases import Base
from semflow.errors import ConfigError
from semflow.nn import VarianceHead
from semflow.objectives import Objective

from .anomalib_base import AnomalibModule, InferenceBatch, OneClass
from .anomalib_models import ModelWithStatistics

__all__ = ["StatisticsModule"]


class StatisticsModule(OneClass):
    """Lightning module that trains a `Fastflow` or `Cflow` of anomalib with predicted statistics in an `Engine`.

    It minimizes `ModelWithStatistics.loss`, one step per batch, with the model's own optimizer, and scores with
    `anomaly_map`, an image by its maximum. Processors, evaluator and visualizer are the model's. Only its flows are
    changed: they are trained.

    A checkpoint holds the weights: `StatisticsModule.load_from_checkpoint(path, model=..., head=...)`.

    Args:
        model: a `Fastflow` or `Cflow`.
        head: see `semflow.with_statistics`; also base and objective.
        base: as there.
        objective: as there.

    Raises:
        ConfigError: it is another model.

    Example:
        >>> from anomalib.models import Fastflow
        >>> from semflow.nn import InverseGammaVariance, StatisticsNetwork
        >>> fastflow = Fastflow(pre_trained=False, flow_steps=1)
        >>> module = StatisticsModule(fastflow, InverseGammaVariance(StatisticsNetwork(stride=4)))
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
        added = [p for p in self.model.statistics.trainable() if id(p) not in known]
        if added:
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
