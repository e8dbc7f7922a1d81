"""Bases that are fitted to the latents of normal images in one pass, after the training of the flow."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from semflow.errors import CheckpointError

from .semantic import Base, StandardNormal


class Accumulator(Protocol):
    """Statistics or vectors that a `FittedBase` collects from latents.

    Example:
        >>> import torch
        >>> class Count:
        ...     images = 0
        ...     def update(self, z):
        ...         self.images += len(z)
        ...     def merge(self, other):
        ...         self.images += other.images
        >>> accumulator: Accumulator = Count()
        >>> accumulator.update(torch.zeros(3, 4, 8, 8))
        >>> accumulator.images
        3
    """

    def update(self, z: Tensor) -> None:
        """Add the latents (B, C, H, W) of the next images; batches arrive in the order of the images.

        With a region of interest, the locations (B, H, W) inside are passed as `inside`; the others must not count.
        """

    def merge(self, other: Any) -> None:
        """Add what another accumulator of the same base has collected from later images."""


class FittedBase(Base):
    """Base class of bases that are fitted to normal latents, such as a memory; one scale each.

    A subclass defines `accumulator`, `fit` and `log_prob`, and keeps what it has fitted in registered buffers. Their
    lengths may change in `fit`: a saved state with other lengths loads into a base that was not fitted.

    The flow is trained before there is anything to fit, so training uses another base, the prior.

    Args:
        prior: base under which the flow is trained; by default `StandardNormal()`.

    Example:
        >>> import torch
        >>> class Mean(FittedBase):  # a unit normal at the mean of all normal latents
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("mean", torch.zeros(0))
        ...     def accumulator(self):
        ...         from semflow.flows.standardize import ChannelMoments
        ...         return ChannelMoments(4)
        ...     def fit(self, accumulator):
        ...         self.mean = accumulator.mean.float()
        ...     def log_prob(self, z, statistics=None, anomaly_mask=None):
        ...         return StandardNormal().log_prob(z - self.mean[:, None, None])
        >>> base = Mean()
        >>> accumulator = base.accumulator()
        >>> accumulator.update(torch.ones(2, 4, 3, 3))
        >>> base.fit(accumulator)
        >>> other = Mean()
        >>> other.load_state_dict(base.state_dict())
        <All keys matched successfully>
        >>> other.mean
        tensor([1., 1., 1., 1.])
    """

    largest: ClassVar[int] = 2**31
    """Largest number of values of a buffer in a file."""
    least_images: ClassVar[int] = 2
    """Smallest number of images to fit to: each is also scored without what it contributed."""
    takes_tiles: ClassVar[bool] = True
    """False if the base needs whole images."""
    by_location: ClassVar[bool] = False
    """True if every location has its own distribution, so that images must not move."""
    leaves_out: ClassVar[bool] = False
    """True if `normality` and `image_score` support `leave_out`."""
    uses_features: bool = False
    """True if `update` of the accumulator takes the features (B, C, H, W) of z as its second argument."""

    def __init__(self, prior: Base | None = None) -> None:
        super().__init__()
        self.prior = StandardNormal() if prior is None else prior

    @property
    def whole(self) -> bool:
        """True if an image that is left out leaves what would have been fitted without it.

        Cross-conformal calibration fits other bases several times.
        """
        return self.leaves_out

    def accumulator(self) -> Accumulator:
        """Return an empty accumulator of latents."""
        raise TypeError(f"{type(self).__name__} must define accumulator, but got a class without it")

    def fit(self, accumulator: Any) -> None:
        """Fit the base to the latents that one of its accumulators has collected."""
        raise TypeError(f"{type(self).__name__} must define fit, but got a class without it")

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless `fit` could have made the buffers of a saved state, given by their names."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: object) -> None:
        saved = {
            name: x for name, x in self.named_buffers(recurse=False) if name not in self._non_persistent_buffers_set
        }
        missing = [name for name in saved if prefix + name not in state_dict]
        if missing:
            raise CheckpointError(f"{prefix}{missing[0]} must be in the saved state, but got none; fit the model again")
        found = {name: state_dict[prefix + name] for name in saved}
        self.check_state(found)
        for name, own in saved.items():
            if found[name].dim() == own.dim():  # otherwise torch reports the shapes
                setattr(self, name, own.new_empty(found[name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
