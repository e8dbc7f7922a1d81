"""anomalib's own flows over predicted statistics, in anomalib's hands."""

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
    """anomalib's `Fastflow` or `Cflow` over predicted statistics, in its `Engine`.

    It trains the model's flows with the head on `ModelWithStatistics.loss`, one step a batch, by the model's own
    optimizer, and scores by `anomaly_map`, an image by its maximum. All else (processors, evaluator, visualizer) is
    the model's. The model is left as it is; its flows, which it shares, are trained.

    A checkpoint holds the weights: `StatisticsModule.load_from_checkpoint(path, model=..., head=...)`.

    Args:
        model: a `Fastflow` or `Cflow`.
        head, base, objective: of `semflow.with_statistics`.

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
                f"model must be anomalib's Fastflow or Cflow, but got {type(model).__name__}; with_statistics takes "
                "the torch model without its training"
            )
        parts = (model.pre_processor, model.post_processor, model.evaluator, model.visualizer)
        super().__init__(*(False if part is None else part for part in parts))
        self.model = _StatisticsModel(ModelWithStatistics(model, head, base, objective))
        self._theirs = (model,)  # within a tuple it is no submodule: its parts are registered already

    def save_hyperparameters(self, *args: Any, ignore: Any = (), frame: Any = None, **kwargs: Any) -> None:
        """None: modules are no hyperparameters."""
        frame = frame or cast(Any, inspect.currentframe()).f_back
        names = [*([ignore] if isinstance(ignore, str) else ignore), "model", "head", "base", "objective"]
        super().save_hyperparameters(*args, ignore=names, frame=frame, **kwargs)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The model's own."""
        return dict(self._theirs[0].trainer_arguments)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The model's own, with the head's parameters added; those it does not train here get no gradient."""
        optimizer = cast(torch.optim.Optimizer, self._theirs[0].configure_optimizers())
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        added = [p for p in self.model.statistics.trainable() if id(p) not in known]
        if added:
            optimizer.add_param_group({"params": added})
        return optimizer

    def training_step(self, batch: Any, *args: Any) -> Tensor:
        """One step on whole maps."""
        terms = self.model.statistics.loss(batch.image)
        for name, value in terms._asdict().items():
            name = "loss" if name == "total" else name
            self.log(f"train_{name}", value.detach(), on_epoch=True, prog_bar=True, batch_size=len(batch.image))
        return terms.total


class _StatisticsModel(nn.Module):
    """A flow over predicted statistics with anomalib's way to answer."""

    def __init__(self, statistics: ModelWithStatistics) -> None:
        super().__init__()
        self.statistics = statistics

    def forward(self, images: Tensor) -> Any:
        anomaly_map = self.statistics.score(images)
        return InferenceBatch(pred_score=anomaly_map.amax((1, 2)), anomaly_map=anomaly_map[:, None])
