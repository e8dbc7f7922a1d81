"""Kernel density estimates by brute force, and the size of what an operation allocates."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """Records the size in bytes of the largest result of an operation."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return result


def kernel_density(z, memory, beta, alpha=None, form="exact", exclude=None, ids=None):
    """Log of the mean density around stored vectors, of every pair by its definition, in float64."""
    z, memory = z.double(), memory.double()
    beta = beta.double().expand(z.shape[:2])
    alpha = None if alpha is None else alpha.double().expand(z.shape[:2])
    q = (z[:, :, None] - memory).square().sum(3)
    c, b = z.shape[2], beta[..., None]
    if alpha is None or form == "mode":
        s = b if alpha is None else b / (alpha[..., None] + 1)
        each = -c / 2 * torch.log(2 * math.pi * s) - q / (2 * s)
    elif form == "marginal":
        a = alpha[..., None]
        each = torch.lgamma(a + c / 2) - torch.lgamma(a) - c / 2 * torch.log(2 * math.pi * b)
        each = each - (a + c / 2) * torch.log1p(q / (2 * b))
    else:
        a = alpha[..., None]
        each = -c / 2 * (math.log(2 * math.pi) + torch.log(b) - torch.digamma(a)) - a * q / (2 * b)
    kept = torch.ones_like(q, dtype=torch.bool)
    if exclude is not None:
        kept = (ids != exclude[..., None]).expand_as(q)
    return each.masked_fill(~kept, -torch.inf).logsumexp(2) - torch.log(kept.sum(2).double())
