"""Bases that are fitted to normal latents in one pass."""

from typing import Any, Protocol, Self

from torch import Tensor

from .semantic import Base


class Accumulator(Protocol):
    """What a fitted base needs of latents, collected batch by batch in the order of the images."""

    def update(self, z: Tensor) -> None:
        """Add latents (B, C, H, W) of the next B images."""

    def merge(self, other: Self) -> None:
        """Add what another accumulator has collected from later images."""


class FittedBase(Base):
    """Base class of bases that are fitted to normal latents in one pass, after the training of the flow."""

    def accumulator(self) -> Any:
        """Return an empty accumulator."""
        raise TypeError(f"{type(self).__name__} must define accumulator, but got a class without it")

    def fit(self, accumulator: Any) -> None:
        """Fit the base to the latents that an accumulator has collected."""
        raise TypeError(f"{type(self).__name__} must define fit, but got a class without it")

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take buffers of another size: it is known only after fitting."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            if (saved := state.get(prefix + name)) is not None and saved.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state, prefix, *args)
