"""`check_flow`: the laws of flows, tried on any module that says it is one."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from semflow.errors import ShapeError
from semflow.nn import Context

from .case import Case, perturb
from .laws import LAWS, Law

__all__ = ["LawError", "check_flow"]

LARGEST = 2048
"""Rows of the largest Jacobian that is taken: one backward pass a row."""


OTHER_EVENT = {
    ("locality", "location"): "; if it maps (C, H, W), its event is 'sample'",
    ("log_det", "sample"): "; if it maps vectors (C,), one a location, its event is 'location'",
}
"""What may be declared wrongly where a law is broken, by the law and the event that was declared."""


class LawError(AssertionError):
    """A flow breaks a law. `laws` holds the names of all that it breaks.

    Example:
        >>> error = LawError("Scale: its log_det is not log |det dz/dx|", ("log_det",))
        >>> error.laws
        ('log_det',)
    """

    def __init__(self, message: str, laws: tuple[str, ...]) -> None:
        super().__init__(message)
        self.laws = laws


def check_flow(
    flow: nn.Module,
    x: Tensor,
    context: Context = None,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    perturbation: float = 0.1,
    compile_backend: str | None = "aot_eager",
    factory: Callable[[], nn.Module] | None = None,
) -> dict[str, float]:
    """Try every law of `LAWS` on a flow, which need not be a `Flow` but must do what one does.

    The laws are tried on a copy whose parameters are perturbed, since near its initialisation many a wrong flow is
    next to the identity; the flow given is left as it is. Deviations are relative to the largest value, or to 1.

    Args:
        flow: a module with `forward(x, context)`, which gives (z, log_det), `inverse(z, context)` and `event`, tried in
            the mode (training or evaluation) it is in.
        x: (B, C, H, W), at least two images that differ, in the flow's dtype and on its device. Small, since the
            Jacobian is taken row by row: C, or C H W for a flow whose event is `"sample"`, is at most 2048.
        context: what the flow is conditioned on, if it is.
        seed: of the perturbation and of everything else that is drawn.
        tolerance: largest deviation; by default 1e-4, and 1e-6 where a result is float64 (that it is not less leaves
            room for constants which a flow keeps in float32).
        perturbation: relative size of the change of the parameters; 0 for none.
        compile_backend: of `torch.compile`; `"inductor"` needs a C++ compiler, None skips the law.
        factory: makes a new flow like this one, for the law `state_dict`. Without it every tensor of a copy is
            overwritten instead, also constants which are rightly not in the state dict.

    Returns:
        The largest deviation found, by law.

    Raises:
        LawError: an AssertionError that names each broken law, what was expected and the deviation found.
        ShapeError: x is not fit for the check.

    Example:
        >>> class Stretch(nn.Module):
        ...     event = "location"
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        ...     def forward(self, x, context=None):
        ...         return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x), *x.shape[2:])
        ...     def inverse(self, z, context=None):
        ...         return z * (-self.log_scale).exp()
        >>> x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
        >>> check_flow(Stretch(4), x)["log_det"] < 1e-6
        True
        >>> class Wrong(Stretch):
        ...     def inverse(self, z, context=None):
        ...         return z * self.log_scale.exp()
        >>> check_flow(Wrong(4), x)
        Traceback (most recent call last):
        semflow.testing.check.LawError: Wrong breaks the law inverse
            inverse: inverse(forward(x)) must equal x to 0.0001 in float32, but it deviates by ...
    """
    event = getattr(flow, "event", None)
    if event not in ("location", "sample"):
        raise LawError(
            f"{type(flow).__name__} breaks the law shapes\n    shapes: event must be 'location' or 'sample', but it is "
            f"{event!r}",
            ("shapes",),
        )
    if x.dim() != 4 or len(x) < 2 or not x.is_floating_point():
        raise ShapeError(f"x must be (B, C, H, W), B at least 2, of floats, but got {tuple(x.shape)} of {x.dtype}")
    rows = x.shape[1] if event == "location" else x[0].numel()
    if rows > LARGEST:
        raise ShapeError(
            f"x must give a Jacobian of at most {LARGEST} rows, but got {tuple(x.shape)} and {rows} rows for event "
            f"{event!r}: take a smaller map or fewer channels"
        )
    module = deepcopy(flow)
    perturb(module, perturbation, torch.Generator().manual_seed(seed))
    case = Case(module, x.detach().clone(), context, tolerance, seed, compile_backend, factory)

    deviations: dict[str, float] = {}
    broken: dict[str, str] = {}
    cause: Exception | None = None
    for name, law in LAWS.items():
        try:
            largest, complaint = _try(law, case)
        except Exception as error:  # whatever a flow raises where a law needs a result breaks that law
            largest, complaint = float("inf"), f"it raised {type(error).__name__}: {_first_line(error)}"
            cause = cause or error
        deviations[name] = largest
        if complaint:
            broken[name] = complaint + OTHER_EVENT.get((name, event), "")
            if name == "shapes":
                break  # without these the others mean nothing
    if broken:
        lines = "".join(f"\n    {name}: {complaint}" for name, complaint in broken.items())
        laws = f"the law{'s' * (len(broken) > 1)} {', '.join(broken)}"
        raise LawError(f"{type(flow).__name__} breaks {laws}{lines}", tuple(broken)) from cause
    return deviations


def _try(law: Law, case: Case) -> tuple[float, str]:
    """The largest deviation of a law, and what is wrong, if anything is."""
    largest = 0.0
    for finding in law(case.to(case.x.dtype)):  # a copy: what one law makes a flow do is not another's to bear
        largest = max(largest, finding.deviation)
        if not finding.holds:
            return largest, f"{finding.expected}, but {finding.came}"
    return largest, ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "without a message")
