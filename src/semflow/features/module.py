"""A backbone of the user's own."""

__all__ = ["ModuleFeatures"]

from .frozen import FrozenFeatures


class ModuleFeatures(FrozenFeatures):
    """Any torch module of your own as a frozen backbone: `FrozenFeatures` under the name a user looks for.

    The module receives images already normalised by `mean` and `std` (pass `mean=(0, 0, 0), std=(1, 1, 1)` if it
    normalises for itself) and returns a map, a list or tuple of maps, or a dict of maps. What it returns is compared
    with `channels` and `strides` at every call.

    Arguments:
        module: the network; it is frozen and put in eval mode in place, not copied.
        channels, strides: of each map, in the order the module returns them.
        mean, std: the normalisation its weights were trained with (default: ImageNet's).
        smoothing: odd kernel of an average pooling over each map, 1 for none.

    >>> import torch
    >>> features = ModuleFeatures(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), channels=(8,), strides=(2,))
    >>> features(torch.rand(1, 3, 16, 16))[0].shape
    torch.Size([1, 8, 8, 8])
    """
