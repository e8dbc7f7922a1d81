"""What anomalib's `Engine` wants of a model; anomalib is imported here, and only here."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from semflow.features.timm_module import load_timm
from semflow.functional import digamma_series, lgamma_series

from .foreign import library

__all__ = ["AnomalibModule", "InferenceBatch", "OneClass", "PreProcessor"]

load_timm()  # torchvision, which anomalib imports, cannot be imported beside some builds of torch without
LearningType: Any = library("anomalib", "anomalib").LearningType
AnomalibModule: Any = library("anomalib.models.components", "anomalib").AnomalibModule
InferenceBatch: Any = library("anomalib.data", "anomalib").InferenceBatch
PreProcessor: Any = library("anomalib.pre_processing", "anomalib").PreProcessor


class OneClass(AnomalibModule):  # type: ignore[misc]  # anomalib may be missing
    """A model that learns from normal images, and validates as all of those do."""

    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The batch with what the model says of it."""
        return batch.update(**self.model(batch.image)._asdict())

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """anomalib's, with the special functions in arithmetic; its OpenVINO files are made of this."""
        kwargs.setdefault("opset_version", 18)  # what torch's exporter writes; anomalib asks for less, in vain
        with _InArithmetic():
            return super().to_onnx(*args, **kwargs)

    @property
    def learning_type(self) -> Any:
        """One class: the normal one."""
        return LearningType.ONE_CLASS


class _InArithmetic(TorchFunctionMode):
    """While a graph is traced, digamma and lgamma, which ONNX does not know, are what it knows."""

    series: ClassVar[dict[Any, Callable[..., Any]]] = {
        torch.digamma: digamma_series,
        torch.special.digamma: digamma_series,
        torch.lgamma: lgamma_series,
    }

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.series.get(func, func)(*args, **(kwargs or {}))
