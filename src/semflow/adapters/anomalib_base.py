"""What anomalib's `Engine` wants of a model; anomalib is imported here, and only here."""

from typing import Any

from ..features.timm_module import load_timm
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

    @property
    def learning_type(self) -> Any:
        """One class: the normal one."""
        return LearningType.ONE_CLASS
