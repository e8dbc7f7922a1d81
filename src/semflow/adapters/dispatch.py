"""`as_flow`: which adapter a flow needs."""

from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from torch.distributions import Distribution

from semflow.errors import ConfigError
from semflow.flows import Event, Flow

from .callable_flow import CallableFlow
from .foreign import check_event, come_from, describe
from .freia import is_block, is_sequence
from .freia_flow import FreiaFlow, is_graph
from .nflows_flow import NFlowsFlow
from .normflows_flow import NormflowsFlow
from .transform_flow import TransformFlow, is_distribution
from .transform_steps import is_transform
from .zuko_flow import ZukoFlow

__all__ = ["as_flow"]


def as_flow(flow: Any, event: Event | None = None) -> Flow:
    """A flow of another library as a flow of this one: wrapped, not converted; it runs its own code.

    The parameters stay those of the flow given, and train there. No library is imported for it but the one that the
    flow comes from. A flow of vectors (N, C) is applied at every location of a map (B, C, H, W) by itself: event
    `"location"`; a flow of maps (C, H, W) has a log-det of the whole: event `"sample"`.

    | flow | adapter | event |
    |---|---|---|
    | FrEIA's `SequenceINN`, `GraphINN` | `FreiaFlow` | known from its dimensions |
    | nflows' `Transform`, a list of them, or `Flow` | `NFlowsFlow` | to be declared |
    | normflows' `NormalizingFlow`, or a list of flows | `NormflowsFlow` | to be declared |
    | zuko's `Flow` or `LazyTransform` | `ZukoFlow` | `"location"` |
    | torch.distributions', Pyro's `Transform`, a list of them, or `TransformedDistribution` | `TransformFlow` | known |
    | any callable x -> (z, log_det) with an `inverse` | `CallableFlow` | to be declared |
    | a flow of semflow, or what declares its `event` like one | none, it is returned | its own |

    Whether a flow and its declaration are right is what `semflow.testing.check_flow` tells.

    Args:
        flow: see above; the adapters' own pages say more, and take options that this function has not.
        event: `"location"` or `"sample"`; only where it is not known.

    Raises:
        ConfigError: it is no flow, the event is not declared, or another than is known, or the library is missing.

    Example:
        >>> import torch
        >>> from torch.distributions.transforms import AffineTransform, SigmoidTransform
        >>> flow = as_flow([AffineTransform(0.0, 2.0), SigmoidTransform()])
        >>> z, log_det = flow(torch.rand(2, 6, 3, 4))
        >>> flow.event, z.shape, log_det.shape
        ('location', torch.Size([2, 6, 3, 4]), torch.Size([2, 3, 4]))
    """
    first = _first(flow)
    if isinstance(flow, nn.Module) and getattr(flow, "event", None) in ("location", "sample"):
        check_event(event, type(flow).__name__, cast(Any, flow).event)
        return cast(Flow, flow)
    if is_sequence(flow) or is_graph(flow):
        wrapped = FreiaFlow(flow)
        check_event(event, f"FrEIA's {type(flow).__name__} of {_dimensions(wrapped)}", wrapped.event)
        return wrapped
    if come_from(first, "nflows"):
        return NFlowsFlow(flow, event)
    if come_from(first, "normflows"):
        return NormflowsFlow(flow, event)
    if is_transform(first) or is_distribution(flow):
        return TransformFlow(flow, event)
    if come_from(first, "zuko"):
        return ZukoFlow(flow, event)
    if isinstance(flow, type):
        raise ConfigError(f"flow must be an object, but got the class {flow.__qualname__}: make one of it first")
    if is_block(first) or come_from(first, "FrEIA"):
        raise ConfigError(
            f"flow must be a SequenceINN or a GraphINN of FrEIA, but got {describe(first)}: append blocks to one, "
            "inn = SequenceINN(C); inn.append(block, ...)"
        )
    if isinstance(flow, Distribution):
        raise ConfigError(f"flow must be a TransformedDistribution or its transforms, but got {describe(flow)}")
    if not callable(flow) or not callable(getattr(flow, "inverse", None)):
        of = f" of {describe(first)}" if first is not flow else ""
        raise ConfigError(
            "flow must be of FrEIA, nflows, normflows, zuko, torch.distributions or Pyro, or a callable that gives "
            f"(z, log_det) and has an inverse, but got {describe(flow)}{of}; "
            "CallableFlow(function, event, inverse=...) takes two functions"
        )
    return CallableFlow(flow, event)


def _first(flow: Any) -> Any:
    """What a list holds first; otherwise the flow itself."""
    is_list = isinstance(flow, Sequence | nn.ModuleList) and not is_transform(flow)
    return flow[0] if is_list and len(flow) else flow


def _dimensions(flow: FreiaFlow) -> str:
    return "(C,)" if flow.event == "location" else "(C, H, W)"
