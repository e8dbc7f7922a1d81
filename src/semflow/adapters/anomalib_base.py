"""Base class of the Lightning modules for anomalib's `Engine`; only this module imports anomalib."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from semflow._optional import import_optional
from semflow.features.timm_module import load_timm
from semflow.functional import digamma_series, lgamma_series

__all__ = ["AnomalibModule", "InferenceBatch", "OneClass", "PreProcessor"]

load_timm()  # makes torchvision, which anomalib imports, importable beside a CPU build of torch
LearningType: Any = import_optional("anomalib").LearningType
AnomalibModule: Any = import_optional("anomalib.models.components").AnomalibModule
InferenceBatch: Any = import_optional("anomalib.data").InferenceBatch
PreProcessor: Any = import_optional("anomalib.pre_processing").PreProcessor


class OneClass(AnomalibModule):  # type: ignore[misc]  # anomalib may be missing
    """Lightning module that trains on normal images, with anomalib's usual validation step."""

    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the batch with the model's predictions."""
        return batch.update(**self.model(batch.image)._asdict())

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """Call anomalib's ONNX export, which its OpenVINO export uses too, without digamma and lgamma in the graph."""
        kwargs.setdefault("opset_version", 18)  # torch's exporter writes no older version
        with _ElementarySpecialFunctions():
            return super().to_onnx(*args, **kwargs)

    @property
    def learning_type(self) -> Any:
        """One-class learning."""
        return LearningType.ONE_CLASS


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
