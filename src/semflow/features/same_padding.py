"""TensorFlow's `same` padding without a padded copy of the input."""

import torch.nn.functional as F
from torch import Tensor, nn

from semflow._devices import is_traced


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's `same` padding: ceil(H / stride) rows of output, the odd row of zeros at the end.

    On a CPU, a kernel with a leading row of zeros and symmetric padding replaces the asymmetric padding, for which the
    input would be copied: the output is the same.

    Example:
        >>> import torch
        >>> SameConv2d(3, 8, 3, stride=2)(torch.ones(1, 3, 10, 15)).shape
        torch.Size([1, 8, 5, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, C, H, W)."""
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        height, width = (max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n) for n, k, s, d in sides)
        weight, padding = self.weight, ((height + 1) // 2, (width + 1) // 2)
        if height % 2 or width % 2:
            if x.device.type == "cpu" and self.dilation == (1, 1) and not is_traced():
                weight = F.pad(weight, (width % 2, 0, height % 2, 0))
            else:
                x = F.pad(x, (width // 2, padding[1], height // 2, padding[0]))
                padding = (0, 0)
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)


def replace_same_convolutions(network: nn.Module) -> None:
    """Replace timm's convolutions with `same` padding by `SameConv2d`, in place, except those with hooks."""
    for name, module in list(network.named_modules()):
        if type(module).__name__ == "Conv2dSame" and isinstance(module, nn.Conv2d) and not module._forward_hooks:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, _same(module))


def _same(conv: nn.Conv2d) -> SameConv2d:
    sizes = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride
    layer = SameConv2d(*sizes, 0, conv.dilation, conv.groups, device="meta")  # type: ignore[arg-type]
    layer.weight, layer.bias = conv.weight, conv.bias
    return layer.train(conv.training)
