"""`with_statistics` for whole models of anomalib, from images: their backbone, their flows, another base."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from semflow.bases import Base
from semflow.detectors import Latents
from semflow.errors import ConfigError, ShapeError
from semflow.nn import PositionTables, SinusoidalPosition2d, VarianceHead
from semflow.nn.statistics_network import IMAGENET_MEAN, IMAGENET_STD
from semflow.objectives import Objective

from .foreign import come_from, describe
from .freia import is_sequence
from .freia_flow import is_graph
from .statistics import Contexts, FlowWithStatistics, Maps

__all__ = ["ModelWithStatistics", "is_anomalib_model"]

Encoded = tuple[list[Tensor], list[PositionTables | None]]
"""The maps of images, and the contexts of their flows."""


class ModelWithStatistics(FlowWithStatistics):
    """What `with_statistics` gives for anomalib's `FastflowModel` and `CflowModel`, or the `Fastflow`, `Cflow` around.

    Its methods are those of `FlowWithStatistics`, but `features` are images (B, 3, H, W), normalised as anomalib gives
    them to its models (ImageNet's mean and deviation). The model's own backbone makes maps of them, its own flows, one
    a scale, run on those, and where they are conditioned on a position they are given it. A head that looks at images
    is given the same images in [0, 1].

    Nothing of the model is changed. What trains is its flows and the head: the layer norms that FastFlow has before
    its flows stay as they are, since features that are trained with their own density have none.

    Raises:
        ConfigError: it is another model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: Any, head: VarianceHead | None, base: Base | None = None, objective: Objective | None = None
    ) -> None:
        inner = _torch_model(model)
        maps = _FastflowMaps(inner) if hasattr(inner, "fast_flow_blocks") else _CflowMaps(inner)
        super().__init__(list(inner.fast_flow_blocks if maps.fastflow else inner.decoders), head, base, objective)
        self.maps = maps.eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> "ModelWithStatistics":
        """The mode of the flows and the head; what comes before them is frozen."""
        super().train(mode)
        self.maps.eval()
        return self

    def trainable(self) -> list[nn.Parameter]:
        """The parameters of the flows and the head."""
        frozen = {id(p) for p in self.maps.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in frozen]

    def encode(self, features: Maps, image: Tensor | None = None, context: Contexts = None) -> list[Latents]:
        """Compute the latents and the statistics of each scale from images; arguments as in the class."""
        if not isinstance(features, Tensor) or features.dim() != 4 or features.shape[1] != 3:
            came = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ShapeError(f"features must be normalised images (B, 3, H, W) of a whole model, but got {came}")
        with torch.no_grad():
            maps, contexts = self.maps(features)
        image = features * self.std + self.mean if image is None else image
        return super().encode(maps, image, contexts if context is None else context)

    def _size(self, features: Maps, image: Tensor | None, maps: Sequence[Tensor]) -> tuple[int, int]:
        height, width = cast(Tensor, features).shape[2:]
        return height, width


def is_anomalib_model(value: object) -> bool:
    """Whether it is a model of anomalib, bare or with its training around it, and not one of its flows."""
    return isinstance(value, nn.Module) and come_from(value, "anomalib") and not (is_sequence(value) or is_graph(value))


def _torch_model(model: Any) -> Any:
    """The torch model within a Lightning module, or itself."""
    inner = getattr(model, "model", model)
    if {kind.__name__ for kind in type(inner).__mro__} & {"FastflowModel", "CflowModel"}:
        return inner
    raise ConfigError(
        f"flow must be anomalib's Fastflow or Cflow, or the torch model of one, but got {describe(inner)}; "
        "of another model give the flows themselves, a list of one a scale"
    )


class _Owned(nn.Module):
    """Parts of a model are registered here, the model is not: its flows are in a place of their own already."""

    fastflow = False

    def __init__(self, model: Any, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._owner = (model,)  # within a tuple it is no submodule, and is copied and pickled with the rest

    @property
    def owner(self) -> Any:
        """The model."""
        return self._owner[0]


class _FastflowMaps(_Owned):
    """Maps normalised by the model's layer norms; of a vision transformer its tokens in their places."""

    fastflow = True

    def __init__(self, model: Any) -> None:
        norms = [model.norms] if hasattr(model, "norms") else []
        super().__init__(model, [model.feature_extractor, *norms])

    def forward(self, images: Tensor) -> Encoded:
        kinds = {kind.__name__ for kind in type(self.owner.feature_extractor).__mro__}
        which = "vit" if "VisionTransformer" in kinds else "cait" if "Cait" in kinds else "cnn"
        maps = list(getattr(self.owner, f"_get_{which}_features")(images))
        return maps, [None] * len(maps)


class _CflowMaps(_Owned):
    """Maps of the layers that the model pools, with the position code that its flows are conditioned on."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, [model.encoder, SinusoidalPosition2d(model.condition_vector)])

    def forward(self, images: Tensor) -> Encoded:
        activation = self.owner.encoder(images)
        maps = [activation[layer] for layer in self.owner.pool_layers]
        return maps, [self.parts[1](x.shape[2], x.shape[3]) for x in maps]
