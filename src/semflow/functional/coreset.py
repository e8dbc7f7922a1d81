"""stand-in"""
import torch
from typing import NamedTuple
from torch import Tensor
class Coreset(NamedTuple):
    indices: Tensor
    radius: float
def k_center(x, count, *, start=None, chosen=None, projection=None, seed=0):
    n = count if isinstance(count, int) else int(count * len(x))
    d = torch.full((len(x),), torch.inf); i = start or 0; out = []
    for _ in range(n):
        out.append(i); d = torch.minimum(d, (x - x[i]).norm(dim=1)); i = int(d.argmax())
    return Coreset(torch.tensor(out), d.max().item())
