"""Fused CPU kernels for a block of coupling, global affine and hard permutation.

With x = [p, a], (s, t) = gain subnet(p) and c the soft clamp, a block computes u = [p, a exp(c(s)) + t],
log_det = sum c(s) and z = (scale u + shift)[index]. Each kernel is one step of autograd with a forward and a backward
pass. Both passes process groups of locations that fit into the cache, work in place, and recompute elementwise terms
instead of storing them. The results equal those of plain operators up to rounding.

- `LOCATION` includes a `LocationSubnet`. It saves the memory traffic of the hidden units and of all intermediate maps.
- `ELEMENTWISE` starts from the output of any subnet. It saves the memory traffic of the intermediate maps.

`benchmarks/speed/kernels.py` measures both against plain operators.
"""

from .autograd import ELEMENTWISE, LOCATION, apply
from .steps import CouplingForm

__all__ = ["ELEMENTWISE", "LOCATION", "CouplingForm", "apply"]
