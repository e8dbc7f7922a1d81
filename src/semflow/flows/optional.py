"""A flow that can be left out."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.nn import Context

from .base import Flow, Result, check_event


class OptionalFlow(Flow):
    """Flow that can be left out: z = flow(x), or z = x with a log-det of 0 if it is not used.

    Training uses it. Then `semflow.fit` leaves it out if it stretches the features of normal images too unevenly for
    distances between latents to be compared, see `semflow.training.choose_flow`. The choice is part of the saved state.

    Args:
        flow: Flow of event `"location"`.

    Attributes:
        used: Whether the flow is used.
        spread: Standard deviation of the log-det that decided, 0 before.
        optional: False if `semflow.fit` always uses it, as in the models of a cross-conformal calibration.

    Example:
        >>> from semflow.flows import GlobalAffine
        >>> flow, x = OptionalFlow(GlobalAffine(4, start=2.0)), torch.randn(2, 4, 3, 5)
        >>> flow.use(False)
        >>> z, log_det = flow(x)
        >>> torch.equal(z, x), log_det.shape
        (True, torch.Size([2, 3, 5]))
    """

    choice: Tensor

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        if check_event(flow, "flow") != "location":
            raise ConfigError("flow must have event 'location' to be left out, but got 'sample'")
        self.flow = flow
        self.channels = cast(int, getattr(flow, "channels", 0))
        self.register_buffer("choice", torch.tensor([1.0, 0.0]))
        self.used = self.optional = True

    @property
    def spread(self) -> float:
        """Standard deviation of the log-det, as measured by `semflow.training.choose_flow`."""
        return self.choice[1].item()

    def use(self, used: bool, spread: float = 0.0) -> None:
        """Use the flow or leave it out, and record the spread of its log-det that decided."""
        self.used = used
        self.choice.copy_(torch.tensor([float(used), spread]))

    def forward(self, x: Tensor, context: Context = None) -> Result:
        """Map features (B, C, H, W) to (z, log_det)."""
        if self.used:
            return cast(Result, self.flow(x, context))
        return x, x.new_zeros(x[:, 0].shape, dtype=torch.promote_types(x.dtype, torch.float32))

    def inverse(self, z: Tensor, context: Context = None) -> Tensor:
        """Map latents (B, C, H, W) back to features."""
        return cast(Flow, self.flow).inverse(z, context) if self.used else z

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.used = bool(self.choice[0] > 0.5)

    def extra_repr(self) -> str:
        """Show the choice."""
        return f"used={self.used}"


def used_parameters(flows: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of flows, without those of optional flows that are left out.

    Example:
        >>> from semflow.flows import GlobalAffine
        >>> flow = OptionalFlow(GlobalAffine(4))
        >>> flow.use(False)
        >>> len(list(flow.parameters())), len(list(used_parameters(flow)))
        (2, 0)
    """
    left = [flow for flow in flows.modules() if isinstance(flow, OptionalFlow) and not flow.used]
    unused = {id(parameter) for flow in left for parameter in flow.parameters()}
    return (parameter for parameter in flows.parameters() if id(parameter) not in unused)
