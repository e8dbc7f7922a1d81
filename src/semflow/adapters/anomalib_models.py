"""Statistics prediction for whole models of anomalib, from images."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from semflow.bases import Base
from semflow.detectors import Latents
from semflow.errors import ConfigError, ShapeError
from semflow.nn import SinusoidalPosition2d, VarianceHead
from semflow.nn.statistics_network import IMAGENET_MEAN, IMAGENET_STD
from semflow.objectives import Objective

from .foreign import comes_from, describe
from .freia_flow import is_graph, is_sequence
from .inputs import check_normalized
from .statistics import Contexts, FlowWithStatistics, Maps


class ModelWithStatistics(FlowWithStatistics):
    """Statistics prediction for anomalib's `Fastflow` and `Cflow`, or their torch models; made by `with_statistics`.

    The methods are those of `FlowWithStatistics`, but `features` are images (B, 3, H, W), normalized with ImageNet's
    mean and standard deviation, as anomalib passes them to its models. The model's own backbone turns them into feature
    maps for its own flows, with a position code as context for CFLOW. By default, a head that predicts from images gets
    the same images in [0, 1].

    The model is not changed. Its flows and the head train; its backbone and FastFlow's layer norms stay frozen, since
    a likelihood cannot train its own features.

    Args:
        model: a `Fastflow`, a `Cflow`, or its torch model.
        head, base, objective: see `with_statistics`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: Any, head: VarianceHead | None, base: Base | None = None, objective: Objective | None = None
    ) -> None:
        inner = getattr(model, "model", model)  # the torch model of a Lightning module
        names = _class_names(inner)
        if not names & {"FastflowModel", "CflowModel"}:
            raise ConfigError(
                f"flow must be a Fastflow or Cflow of anomalib or its torch model, but got {describe(inner)}; for "
                "another model pass its flows, a list with one per scale"
            )
        if "FastflowModel" in names:
            super().__init__(list(inner.fast_flow_blocks), head, base, objective)
            backbone = _class_names(inner.feature_extractor)
            kind = "vit" if "VisionTransformer" in backbone else "cait" if "Cait" in backbone else "cnn"
            # A bound method, which keeps the model alive but does not register its flows a second time.
            self.extract: Callable[[Tensor], Any] = getattr(inner, f"_get_{kind}_features")
            self.frozen = nn.ModuleList([inner.feature_extractor, getattr(inner, "norms", nn.ModuleList())])
        else:
            super().__init__(list(inner.decoders), head, base, objective)
            self.frozen = nn.ModuleList([inner.encoder])
            self.position = SinusoidalPosition2d(inner.condition_vector)
        self.layers = getattr(inner, "pool_layers", None)
        self.frozen.eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> "ModelWithStatistics":
        """Set the mode of the flows and the head; the frozen parts stay in eval mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters of the flows and the head that require gradients."""
        frozen = {id(p) for p in self.frozen.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in frozen]

    def encode(self, features: Maps, image: Tensor | None = None, context: Contexts = None) -> list[Latents]:
        """Compute the latents and the statistics of each scale from normalized images (B, 3, H, W)."""
        if image is not None:
            return super().encode(features, image, context)
        return self.encode_checked(self.feature_maps(features), _images(features) * self.std + self.mean, context)

    @torch.no_grad()
    def feature_maps(self, features: Maps) -> list[Tensor]:
        """Compute the maps that the model's flows take from normalized images (B, 3, H, W)."""
        images = _images(features)
        if self.layers is None:
            return list(self.extract(images))
        activations = self.frozen[0](images)
        return [activations[layer] for layer in self.layers]

    def map_size(self, features: Maps, image: Tensor | None) -> tuple[int, int] | None:
        """Return the size of the images."""
        return super().map_size(features, cast(Tensor, features))


def is_anomalib_model(value: object) -> bool:
    """Return whether a value is a model of anomalib, with or without its Lightning module, and not one of its flows."""
    is_module = isinstance(value, nn.Module) and comes_from(value, "anomalib")
    return is_module and not is_sequence(value) and not is_graph(value)


def _class_names(value: object) -> set[str]:
    return {kind.__name__ for kind in type(value).__mro__}


def _images(features: Maps) -> Tensor:
    if not isinstance(features, Tensor) or features.dim() != 4 or features.shape[1] != 3:
        given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ShapeError(f"features must be normalized images (B, 3, H, W) for a whole model, but got {given}")
    check_normalized(features)
    return features
