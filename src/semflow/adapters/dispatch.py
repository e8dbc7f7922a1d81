"""Choice of the adapter for a flow."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.distributions import Distribution

from semflow.errors import ConfigError
from semflow.flows import Event, Flow

from .callable_flow import CallableFlow
from .foreign import ForeignFlow, check_event, comes_from, describe
from .freia import is_block
from .freia_flow import FreiaFlow, is_graph, is_sequence
from .held import Held, held_by
from .nflows_flow import NFlowsFlow
from .normflows_flow import NormflowsFlow
from .transform_flow import TransformFlow, is_distribution, is_transform
from .zuko_flow import ZukoFlow


def as_flow(flow: Any, event: Event | None = None, parameters: Sequence[Tensor] = ()) -> Flow:
    """Wrap a flow of another library as a flow of this one, without converting it.

    The wrapped flow runs its own code and keeps its parameters. Plain tensors in its attributes and closures become
    parameters if they require gradients, and buffers otherwise, in place. Only the library that it comes from is
    imported. A flow of vectors (N, C) is applied at every location of a map (B, C, H, W), event `"location"`; a flow of
    maps (C, H, W) has one log-det per map, event `"sample"`.

    | flow | adapter | event |
    |---|---|---|
    | FrEIA's `SequenceINN`, `GraphINN` | `FreiaFlow` | known from its dimensions |
    | nflows' `Transform`, a list of them, or `Flow` | `NFlowsFlow` | to be declared |
    | normflows' `NormalizingFlow`, or a list of flows | `NormflowsFlow` | to be declared |
    | zuko's `Flow` or `LazyTransform` | `ZukoFlow` | `"location"` |
    | torch's or Pyro's `Transform`, a list of them, or `TransformedDistribution` | `TransformFlow` | known |
    | any callable x -> (z, log_det) with an `inverse` | `CallableFlow` | to be declared |
    | a flow of semflow, or a module with an `event` | none, it is returned | its own |

    Check a flow and its declared event with `semflow.testing.check_flow`.

    Args:
        flow: see above; the adapters have options that this function does not have.
        event: `"location"` or `"sample"`; only needed if it is not known.
        parameters: trainable tensors that cannot be found in the flow; the first call warns of them.

    Example:
        >>> from torch.distributions.transforms import AffineTransform, SigmoidTransform
        >>> as_flow([AffineTransform(0.0, 2.0), SigmoidTransform()]).event
        'location'
    """
    tensors = _trainable(parameters)
    wrapped = _wrap(flow, event)
    if isinstance(wrapped, ForeignFlow):
        wrapped.hold([*held_by(*wrapped.children()), *tensors])
    elif tensors:
        raise ConfigError(
            f"parameters must be left out for {describe(flow)}, but got {len(tensors)}; register them in the module, "
            "self.scale = nn.Parameter(scale)"
        )
    return wrapped


def _trainable(parameters: Sequence[Tensor]) -> list[Held]:
    """Return the tensors of the argument `parameters`."""
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or not (tensor.requires_grad and tensor.is_leaf):
            given = f"{tuple(tensor.shape)} that is not" if isinstance(tensor, Tensor) else describe(tensor)
            raise ConfigError(f"parameters must be leaf tensors that require gradients, but got {given}")
    return [Held("parameter", tensor) for tensor in tensors]


def _wrap(flow: Any, event: Event | None) -> Flow:
    """Return the adapter of a flow, or the flow itself if it has an event."""
    is_list = isinstance(flow, Sequence | nn.ModuleList) and not is_transform(flow) and len(flow) > 0
    first = cast(Any, flow)[0] if is_list else flow
    if isinstance(flow, nn.Module) and getattr(flow, "event", None) in ("location", "sample"):
        check_event(event, type(flow).__name__, cast(Any, flow).event)
        return cast(Flow, flow)
    if is_sequence(flow) or is_graph(flow):
        wrapped = FreiaFlow(flow)
        inputs = "(C,)" if wrapped.event == "location" else "(C, H, W)"
        check_event(event, f"a {type(flow).__name__} of {inputs}", wrapped.event)
        return wrapped
    if comes_from(first, "nflows"):
        return NFlowsFlow(flow, event)
    if comes_from(first, "normflows"):
        return NormflowsFlow(flow, event)
    if is_transform(first) or is_distribution(flow):
        return TransformFlow(flow, event)
    if comes_from(first, "zuko"):
        return ZukoFlow(flow, event)
    if isinstance(flow, type):
        raise ConfigError(f"flow must be an object, but got the class {flow.__qualname__}; make an instance of it")
    if is_block(first) or comes_from(first, "FrEIA"):
        raise ConfigError(
            f"flow must be a SequenceINN or a GraphINN of FrEIA, but got {describe(first)}; append blocks to one, "
            "inn = SequenceINN(C); inn.append(block, ...)"
        )
    if isinstance(flow, Distribution):
        raise ConfigError(f"flow must be a TransformedDistribution or its transforms, but got {describe(flow)}")
    if not callable(flow) or not callable(getattr(flow, "inverse", None)):
        content = f" of {describe(first)}" if first is not flow else ""
        raise ConfigError(
            "flow must be of FrEIA, nflows, normflows, zuko, torch.distributions or Pyro, or a callable that returns "
            f"(z, log_det) and has an inverse, but got {describe(flow)}{content}; "
            "for two functions call CallableFlow(function, event, inverse=...)"
        )
    return CallableFlow(flow, event)
