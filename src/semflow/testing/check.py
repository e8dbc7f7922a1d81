"""`check_flow`, which checks the laws of flows on any module."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from semflow.errors import ShapeError
from semflow.nn import Context

from .case import Case, perturb
from .laws import LAWS, Law

LARGEST = 2048
"""Rows of the largest Jacobian; each row takes one backward pass."""

OTHER_EVENT = {
    ("locality", "location"): "; if it maps (C, H, W), its event is 'sample'",
    ("log_det", "sample"): "; if it maps vectors (C,) of locations, its event is 'location'",
}
"""Advice for a flow that may declare the wrong event, by violated law and declared event."""


class LawError(AssertionError):
    """A flow violates the laws whose names are in the attribute `laws`.

    Example:
        >>> error = LawError("Scale must satisfy all laws, but got violations of log_det", ("log_det",))
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
    """Check every law of `LAWS` on a flow, which may be any module with the interface of `semflow.flows.Flow`.

    The laws are checked on a copy with perturbed parameters, because many wrong flows are close to the identity when
    they are initialized. Deviations are relative to the largest value or 1.

    Args:
        flow: Module with `forward(x, context)` returning (z, log_det), `inverse(z, context)` and `event`. It is checked
            in its current mode (training or evaluation).
        x: At least two different images (B, C, H, W) in the flow's dtype and on its device. C, or C H W if the event is
            `"sample"`, must be at most 2048, because the Jacobian is computed row by row.
        context: Context of a conditional flow.
        seed: Seed of the perturbation and of all other random numbers.
        tolerance: Largest allowed deviation; by default 1e-4, or 1e-6 if all tensors compared are float64.
        perturbation: Relative size of the change of the parameters; 0 for none.
        compile_backend: Backend of `torch.compile`; `"inductor"` needs a C++ compiler, None skips the law `compiled`.
        factory: Makes a new flow of the same kind for the law `state_dict`. Without it, every tensor of a copy is
            overwritten, including constants that need not be in the state dict.

    Returns:
        The largest deviation per law.

    Raises:
        LawError: An AssertionError that lists each violated law with what was expected and found.
        ShapeError: If `x` cannot be used for the check.

    Example:
        >>> class Shift(nn.Module):
        ...     event = "location"
        ...     def forward(self, x, context=None):
        ...         return x + 1, torch.zeros_like(x[:, 0])
        ...     def inverse(self, z, context=None):
        ...         return z + 1
        >>> check_flow(Shift(), torch.randn(2, 4, 3, 5))
        Traceback (most recent call last):
        semflow.testing.check.LawError: Shift must satisfy all laws of flows, but got violations of inverse
            inverse: inverse(forward(x)) must equal x to 0.0001 in float32, but got a deviation of ...
    """
    event = getattr(flow, "event", None)
    if event not in ("location", "sample"):
        raise _law_error(flow, {"shapes": f"event must be 'location' or 'sample', but got {event!r}"})
    if x.dim() != 4 or len(x) < 2 or not x.is_floating_point():
        raise ShapeError(f"x must be (B, C, H, W) of floats with B at least 2, but got {tuple(x.shape)} of {x.dtype}")
    rows = x.shape[1] if event == "location" else x[0].numel()
    if rows > LARGEST:
        raise ShapeError(
            f"x must have a Jacobian of at most {LARGEST} rows, but got {tuple(x.shape)} with {rows} rows for event "
            f"{event!r}; use a smaller map or fewer channels"
        )
    module = deepcopy(flow)
    perturb(module, perturbation, torch.Generator().manual_seed(seed))
    case = Case(module, x.detach().clone(), context, tolerance, seed, compile_backend, factory)

    deviations: dict[str, float] = {}
    violations: dict[str, str] = {}
    cause: Exception | None = None
    for name, law in LAWS.items():
        try:
            deviations[name], violation = _check(law, case)
        except Exception as error:
            deviations[name] = float("inf")
            violation = f"the flow must run, but got {type(error).__name__}: {_first_line(error)}"
            cause = cause or error
        if violation:
            violations[name] = violation + OTHER_EVENT.get((name, event), "")
            if name == "shapes":
                break  # the other laws rely on the shapes
    if violations:
        raise _law_error(flow, violations) from cause
    return deviations


def _check(law: Law, case: Case) -> tuple[float, str]:
    """Return the largest deviation of a law and the violation, if there is one."""
    largest = 0.0
    for finding in law(case.to(case.x.dtype)):  # a copy, so that laws do not affect each other
        largest = max(largest, finding.deviation)
        if not finding.holds:
            return largest, f"{finding.claim}, but got {finding.found}"
    return largest, ""


def _law_error(flow: nn.Module, violations: dict[str, str]) -> LawError:
    lines = "".join(f"\n    {name}: {violation}" for name, violation in violations.items())
    names = ", ".join(violations)
    message = f"{type(flow).__name__} must satisfy all laws of flows, but got violations of {names}{lines}"
    return LawError(message, tuple(violations))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "without a message")
