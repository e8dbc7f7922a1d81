"""Triton source of the flows' inference for a GPU that is not there, wherever triton is installed."""

import ast
import copy
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from helpers.emulated_cuda import CUDA, cuda_guard
from helpers.recipe_cases import fitted

pytest.importorskip("triton", reason="needs triton")

NAMES = ["fastflow", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sanflow", "cflow_ad", "msflow"))]
SIDE = 64


@pytest.fixture
def h100() -> Iterator[None]:
    """Answers of a GPU's driver, which inductor asks for when it chooses kernels."""
    from torch._inductor import scheduler
    from torch._inductor.runtime.hints import DeviceProperties

    sizes = {"regs_per_multiprocessor": 2**16, "max_threads_per_multi_processor": 2048, "warp_size": 32}
    properties = DeviceProperties("cuda", 0, 132, 90, 9, **sizes)
    device = mock.Mock(major=9, minor=0, **sizes)
    with (
        mock.patch.object(DeviceProperties, "create", return_value=properties),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=device),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(scheduler, "has_triton", return_value=True),
        mock.patch("torch.utils._triton.triton_hash_with_backend", return_value="none"),
    ):
        yield


class LogProbs(nn.Module):
    def __init__(self, detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.detector.log_probs(images, list(maps))[0])


def source(module: nn.Module, *inputs: Tensor) -> str:
    """Return the program that inductor writes for a module; weights are inputs, since constants have no data."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    names, weights = zip(*[*module.named_parameters(), *module.named_buffers()], strict=True)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        state, rest = dict(zip(names, given, strict=False)), given[len(names) :]
        return torch.func.functional_call(module, state, rest)

    given = (*weights, *inputs)
    lowered = GraphLowering(make_fx(call, decomposition_table=select_decomp_table())(*given), shape_env=None)
    mode = torch._guards.detect_fake_mode(given)
    with V.set_graph_handler(lowered), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        lowered.run(*given)
        return lowered.codegen()[0].value


def faked(x: Tensor) -> Tensor:
    made = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=CUDA)
    return nn.Parameter(made, requires_grad=False) if isinstance(x, nn.Parameter) else made


@pytest.mark.parametrize("name", NAMES)
def test_flows_are_triton_kernels(name: str, h100: None) -> None:
    detector = copy.deepcopy(fitted(name)).requires_grad_(False).eval()
    with cuda_guard(), FakeTensorMode(), torch.no_grad():
        for module in detector.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({key: faked(x) for key, x in tensors.items() if x is not None})
        shapes = zip(detector.features.channels, detector.features.strides, strict=True)
        maps = [torch.empty(2, channels, SIDE // stride, SIDE // stride, device=CUDA) for channels, stride in shapes]
        written = source(LogProbs(detector), torch.empty(2, 3, SIDE, SIDE, device=CUDA), *maps)
    ast.parse(written)
    assert written.count("@triton.jit") >= 10
    assert "tl.load(" in written
    assert "cpp_fused" not in written  # no kernel of the host
