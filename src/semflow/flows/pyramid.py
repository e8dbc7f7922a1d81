"""Flows on all scales of a feature pyramid, which treat scales independently or couple them."""

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.nn import Context

from .base import Event, Flow, check_event
from .optional import OptionalFlow
from .sequence import FlowSequence
from .standardize import Standardize

PyramidResult = tuple[list[Tensor], list[Tensor]]
"""The pair (latents, log_dets), one entry per scale each."""


class PyramidFlow(nn.Module):
    """Invertible map of K feature maps to K latents of the same shapes.

    `latents, log_dets = flow(maps, contexts)` with one entry per scale; `maps = flow.inverse(latents, contexts)`.

    - `joint = False`: scales are independent. `events[k]` is the event of scale k and `log_dets[k]` its log-det.
    - `joint = True`: scales are coupled. Every event is `"sample"`, and only the sum of the terms `log_dets[k]`, (B,),
      is defined: it is log |det d latents / d maps|.

    Example:
        >>> from semflow.flows import GlobalAffine
        >>> flow = ScaleWise([GlobalAffine(4), GlobalAffine(8)])
        >>> flow.joint, flow.events
        (False, ('location', 'location'))
    """

    joint: bool = False
    events: tuple[Event, ...] = ()

    def forward(self, maps: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> PyramidResult:
        """Map K feature maps (B, C_k, H_k, W_k), fine to coarse, to (latents, log_dets) given a context per scale."""
        raise TypeError(f"{type(self).__name__} must define forward(maps, contexts), but got a class without it")

    def inverse(self, latents: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> list[Tensor]:
        """Map latents back to feature maps."""
        raise TypeError(f"{type(self).__name__} must define inverse(latents, contexts), but got a class without it")

    def standardizers(self) -> list[Standardize | None]:
        """Return the `Standardize` at the start of each scale, which is fitted to features before training, or None."""
        return [None] * len(self.events)


class ScaleWise(nn.ModuleList, PyramidFlow):
    """Independent flows, one per scale.

    Args:
        flows: One flow per scale, modules with an `event`.

    Example:
        >>> import torch
        >>> from semflow.flows import GlobalAffine
        >>> maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]
        >>> latents, log_dets = ScaleWise([GlobalAffine(4), GlobalAffine(8)])(maps)
        >>> [tuple(log_det.shape) for log_det in log_dets]
        [(2, 8, 8), (2, 4, 4)]
    """

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__(flows)
        self.events = tuple(check_event(flow, f"flows[{k}]") for k, flow in enumerate(self))

    def forward(self, maps: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> PyramidResult:
        """Map each feature map through the flow of its scale."""
        contexts = check_scales(maps, contexts, len(self))
        results = [flow(x, c) for flow, x, c in zip(self, maps, contexts, strict=True)]
        return [z for z, _ in results], [log_det for _, log_det in results]

    def inverse(self, latents: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> list[Tensor]:
        """Map each latent back through the flow of its scale."""
        contexts = check_scales(latents, contexts, len(self))
        return [cast(Flow, flow).inverse(z, c) for flow, z, c in zip(self, latents, contexts, strict=True)]

    def standardizers(self) -> list[Standardize | None]:
        """Return the flow of each scale, or the first of its sequence, if it is a `Standardize`."""
        inner = [flow.flow if isinstance(flow, OptionalFlow) else flow for flow in self]
        first = [flow[0] if isinstance(flow, FlowSequence) else flow for flow in inner]
        return [flow if isinstance(flow, Standardize) else None for flow in first]


class PyramidSequence(PyramidFlow):
    """Composition of pyramid flows; joint if one of them is.

    Args:
        flows: At least one flow, all with the same number of scales; all get the same contexts.

    Example:
        >>> from semflow.flows import CrossScaleCoupling, GlobalAffine
        >>> PyramidSequence([ScaleWise([GlobalAffine(4), GlobalAffine(8)]), CrossScaleCoupling((4, 8))]).joint
        True
    """

    def __init__(self, flows: Iterable[PyramidFlow]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        members = [cast(PyramidFlow, flow) for flow in self.flows]
        counts = [len(flow.events) for flow in members]
        if len(set(counts)) != 1:
            raise ConfigError(f"flows must have the same number of scales, but got {counts}")
        self.joint = any(flow.joint for flow in members)
        self.events = tuple(
            "sample" if self.joint or "sample" in events else "location"
            for events in zip(*(flow.events for flow in members), strict=True)
        )

    def forward(self, maps: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> PyramidResult:
        """Apply all flows; log-dets are summed, over locations too if the event is `"sample"`."""
        latents = list(maps)
        totals: list[Tensor] | None = None
        for flow in self.flows:
            latents, log_dets = flow(latents, contexts)
            log_dets = [
                log_det.sum((1, 2)) if event == "sample" and own == "location" else log_det
                for event, own, log_det in zip(self.events, cast(PyramidFlow, flow).events, log_dets, strict=True)
            ]
            totals = log_dets if totals is None else [a + b for a, b in zip(totals, log_dets, strict=True)]
        return latents, cast(list[Tensor], totals)

    def inverse(self, latents: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> list[Tensor]:
        """Apply the inverses, last to first."""
        maps = list(latents)
        for flow in reversed(self.flows):
            maps = cast(PyramidFlow, flow).inverse(maps, contexts)
        return maps

    def standardizers(self) -> list[Standardize | None]:
        """Return those of the first flow, since later ones do not see features."""
        return cast(PyramidFlow, self.flows[0]).standardizers()


def check_scales(maps: Sequence[Tensor], contexts: Sequence[Context] | None, scales: int) -> Sequence[Context]:
    """Return one context per scale; raise ShapeError if the number of maps or contexts is not `scales`."""
    contexts = [None] * scales if contexts is None else contexts
    for name, entries in (("maps", maps), ("contexts", contexts)):
        if len(entries) != scales:
            raise ShapeError(f"{name} must have {scales} entries, one per scale, but got {len(entries)}")
    return contexts
