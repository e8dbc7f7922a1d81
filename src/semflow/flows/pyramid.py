"""Flows of all scales of a feature pyramid at once: each scale by itself, or scales that exchange."""

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from semflow.errors import ConfigError, ShapeError
from semflow.nn import Context

from .base import Event, Flow
from .sequence import FlowSequence
from .standardize import Standardize

__all__ = ["PyramidFlow", "PyramidResult", "PyramidSequence", "ScaleWise", "check_scales"]

PyramidResult = tuple[list[Tensor], list[Tensor]]


class PyramidFlow(nn.Module):
    """An invertible map of K feature maps to K latents of the same shapes.

    `latents, log_dets = flow(maps, contexts)` with one entry a scale; `maps = flow.inverse(latents, contexts)`.

    - `joint = False`: scales do not meet. `events[k]` is the event of scale k and `log_dets[k]` is its log-det.
    - `joint = True`: scales exchange. Every event is `"sample"`, and `log_dets[k]`, (B,), is the share of scale k: the
      shares add up to log |det d latents / d maps|, and only their sum means something.

    Example:
        >>> import torch
        >>> from semflow.flows import AffineCoupling, ScaleWise
        >>> flow = ScaleWise([AffineCoupling(4), AffineCoupling(6)])  # the one whose scales do not meet
        >>> latents, log_dets = flow([torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)])
        >>> flow.joint, flow.events, [tuple(log_det.shape) for log_det in log_dets]
        (False, ('location', 'location'), [(2, 8, 8), (2, 4, 4)])
    """

    joint: bool = False
    events: tuple[Event, ...] = ()

    def forward(self, maps: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> PyramidResult:
        """Feature maps to latents: (latents, log_dets), K each."""
        raise TypeError(f"{type(self).__name__} must define forward(maps, contexts), which gives (latents, log_dets)")

    def inverse(self, latents: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> list[Tensor]:
        """Latents back to feature maps."""
        raise TypeError(f"{type(self).__name__} must define inverse(latents, contexts)")

    def standardizers(self) -> list[Standardize | None]:
        """The `Standardize` that each scale begins with, or None: what is fitted to features before training."""
        return [None] * len(self.events)


class ScaleWise(nn.ModuleList, PyramidFlow):
    """A flow for each scale, none of which sees another's.

    Args:
        flows: one a scale, modules with an `event`.

    Example:
        >>> import torch
        >>> from semflow.flows import GlobalAffine
        >>> flow = ScaleWise([GlobalAffine(4), GlobalAffine(8)])
        >>> latents, log_dets = flow([torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)])
        >>> [d.shape for d in log_dets], flow.joint, flow.events
        ([torch.Size([2, 8, 8]), torch.Size([2, 4, 4])], False, ('location', 'location'))
    """

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__(flows)
        self.events = tuple(_declared_event(flow, f"flows[{k}]") for k, flow in enumerate(self))

    def forward(self, maps: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> PyramidResult:
        """Each map through the flow of its scale."""
        contexts = check_scales(maps, contexts, len(self))
        results = [flow(x, c) for flow, x, c in zip(self, maps, contexts, strict=True)]
        return [z for z, _ in results], [log_det for _, log_det in results]

    def inverse(self, latents: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> list[Tensor]:
        """Each latent back through the flow of its scale."""
        contexts = check_scales(latents, contexts, len(self))
        return [cast(Flow, flow).inverse(z, c) for flow, z, c in zip(self, latents, contexts, strict=True)]

    def standardizers(self) -> list[Standardize | None]:
        """The flow of a scale itself, or the first of its sequence, where that is a `Standardize`."""
        first = [flow[0] if isinstance(flow, FlowSequence) else flow for flow in self]
        return [flow if isinstance(flow, Standardize) else None for flow in first]


class PyramidSequence(PyramidFlow):
    """Pyramid flows one after the other; joint as soon as one of them is.

    Args:
        flows: at least one, all of the same number of scales; all are given the same contexts.

    Example:
        >>> import torch
        >>> from semflow.flows import CrossScaleCoupling, GlobalAffine
        >>> flow = PyramidSequence([ScaleWise([GlobalAffine(4), GlobalAffine(8)]), CrossScaleCoupling((4, 8))])
        >>> latents, log_dets = flow([torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)])
        >>> [d.shape for d in log_dets], flow.joint
        ([torch.Size([2]), torch.Size([2])], True)
    """

    def __init__(self, flows: Iterable[PyramidFlow]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        members = [cast(PyramidFlow, flow) for flow in self.flows]
        if len({len(flow.events) for flow in members}) != 1:
            raise ConfigError(
                f"flows must be pyramid flows of one number of scales, but got {[len(flow.events) for flow in members]}"
            )
        self.joint = any(flow.joint for flow in members)
        self.events = tuple(
            "sample" if self.joint or "sample" in events else "location"
            for events in zip(*(flow.events for flow in members), strict=True)
        )

    def forward(self, maps: Sequence[Tensor], contexts: Sequence[Context] | None = None) -> PyramidResult:
        """Through all flows; log-dets are added, those of locations summed first where the event is the sample."""
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
        """Back through all flows, last to first."""
        maps = list(latents)
        for flow in reversed(self.flows):
            maps = cast(PyramidFlow, flow).inverse(maps, contexts)
        return maps

    def standardizers(self) -> list[Standardize | None]:
        """Those of the first flow: later ones do not see features."""
        return cast(PyramidFlow, self.flows[0]).standardizers()


def check_scales(maps: Sequence[Tensor], contexts: Sequence[Context] | None, scales: int) -> Sequence[Context]:
    """The contexts, one a scale.

    Raises:
        ShapeError: the maps or the contexts are not as many as the scales.
    """
    if len(maps) != scales:
        raise ShapeError(f"maps must be {scales}, one a scale, but got {len(maps)}")
    if contexts is None:
        return [None] * scales
    if len(contexts) != scales:
        raise ShapeError(f"contexts must be {scales}, one a scale, but got {len(contexts)}")
    return contexts


def _declared_event(flow: nn.Module, name: str) -> Event:
    event = getattr(flow, "event", None)
    if event not in ("location", "sample"):
        raise ConfigError(
            f"{name} ({type(flow).__name__}) must declare event as 'location' or 'sample', but got {event!r}"
        )
    return cast(Event, event)
