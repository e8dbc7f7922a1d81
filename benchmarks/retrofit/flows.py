"""Small flows as users of each library write them, with the likelihood that the library computes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, Transform, TransformedDistribution, constraints
from torch.distributions.transforms import AffineTransform

from semflow.adapters import as_flow
from semflow.errors import ConfigError
from semflow.features.timm_module import load_timm
from semflow.flows import Event, Flow
from semflow.functional import to_locations

BLOCKS = 4


@dataclass(frozen=True)
class Library:
    """A library, and a flow built with it.

    Args:
        text: description of the flow.
        event: of the flow.
        make: builds the library's object from (C, (H, W)).
        log_prob: the library's log p on its standard normal, from that object and maps (B, C, H, W): (B, H, W), or (B,)
            if the event is the sample.
        package: name for `pip` and name for `import`; empty for torch.
        declared: whether `as_flow` needs the event.
    """

    text: str
    event: Event
    make: Callable[[int, tuple[int, int]], Any]
    log_prob: Callable[[Any, Tensor], Tensor]
    package: tuple[str, str] = ("", "")
    declared: bool = False

    def wrap(self, yours: Any) -> Flow:
        """Return the library's object with semflow's interface; it shares the parameters."""
        return as_flow(yours, self.event if self.declared else None)

    @property
    def installed(self) -> bool:
        """True if the library is installed."""
        module = self.package[1]
        return not module or find_spec(module) is not None

    def require(self) -> None:
        """Raise ConfigError if the library is missing."""
        name = self.package[0]
        if not self.installed:
            raise ConfigError(
                f"{name} must be installed for its flow, but got none; pip install 'semflow[{name.lower()}]'"
            )


def row_log_prob(yours: Any, x: Tensor) -> Tensor:
    """Return the log p (B, H, W) of a flow of vectors."""
    log_prob: Tensor = yours.log_prob(to_locations(x))
    return log_prob.view(len(x), *x.shape[2:])


def sample_log_prob(yours: Any, x: Tensor) -> Tensor:
    """Return the log p (B,) of a flow of whole samples on a standard normal, which FrEIA's users write out."""
    z, log_det = yours(x)
    return -0.5 * (z.square().sum((1, 2, 3)) + z[0].numel() * math.log(2 * math.pi)) + log_det


def perceptron(inputs: int, outputs: int, hidden: int = 64) -> nn.Sequential:
    return start_at_zero(nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)))


def convolutions(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    first = nn.Conv2d(inputs, inputs, kernel, padding="same")
    return start_at_zero(nn.Sequential(first, nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, padding="same")))


def start_at_zero(net: nn.Sequential) -> nn.Sequential:
    """Set the last layer to zero, so that its coupling starts as the identity."""
    for parameter in net[-1].parameters():
        nn.init.zeros_(parameter)
    return net


def freia(channels: int, size: tuple[int, int]) -> Any:
    """Build the flow of FastFlow: all-in-one blocks on (C, H, W), alternately with 3x3 and 1x1 convolutions."""
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AllInOneBlock

    inn = SequenceINN(channels, *size)
    for block in range(BLOCKS):
        kernel = 1 if block % 2 else 3
        inn.append(
            AllInOneBlock,
            subnet_constructor=lambda inputs, outputs, kernel=kernel: convolutions(inputs, outputs, kernel),
            permute_soft=False,
        )
    return inn


def anomalib(channels: int, size: tuple[int, int]) -> Any:
    """Build one scale of anomalib's FastFlow with its default of eight steps."""
    load_timm()  # first: it repairs a torchvision without operators, which anomalib imports
    from anomalib.models.image.fastflow.torch_model import create_fast_flow_block

    return create_fast_flow_block([channels, *size], conv3x3_only=False, hidden_ratio=1.0, flow_steps=8)


def nflows(channels: int, size: tuple[int, int]) -> Any:
    """Build couplings and learned linear maps on vectors."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow as Whole
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import AffineCouplingTransform, CompositeTransform, LULinear, RandomPermutation
    from nflows.utils import create_alternating_binary_mask

    parts: list[Any] = []
    for block in range(BLOCKS):
        mask = create_alternating_binary_mask(channels, even=block % 2 == 0)
        net = lambda inputs, outputs: ResidualNet(inputs, outputs, hidden_features=64, num_blocks=1)  # noqa: E731
        parts += [RandomPermutation(channels), LULinear(channels), AffineCouplingTransform(mask, net)]
    return Whole(CompositeTransform(parts), StandardNormal([channels]))


def normflows(channels: int, size: tuple[int, int]) -> Any:
    """Build the RealNVP of the library's README: couplings with alternating masks, and ActNorm."""
    import normflows as nf

    mask = torch.tensor([(i + 1) % 2 for i in range(channels)], dtype=torch.float32)
    parts = []
    for block in range(BLOCKS):
        widths = [channels, 2 * channels, channels]
        shift = nf.nets.MLP(widths, init_zeros=True)
        # The bound keeps an anomaly far from all training features from overflowing.
        scale = nf.nets.MLP(widths, init_zeros=True, output_fn="tanh", output_scale=2.0)
        parts.append(nf.flows.MaskedAffineFlow(1 - mask if block % 2 else mask, shift, scale))
        parts.append(nf.flows.ActNorm(channels))
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(channels, trainable=False), parts)


def zuko(channels: int, size: tuple[int, int]) -> Any:
    """Build a masked autoregressive flow with random orders of the channels."""
    from zuko.flows import MAF

    return MAF(channels, transforms=BLOCKS - 1, randperm=True, hidden_features=(128,))


class Coupling(Transform):
    """Affine coupling of two halves of a vector: x = z exp(s) + t."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, channels: int, flip: bool) -> None:
        super().__init__()
        halves = torch.arange(channels).chunk(2)
        self.passive, self.active = (halves[1], halves[0]) if flip else halves
        self.net = perceptron(len(self.passive), 2 * len(self.active))

    def parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.net(x[..., self.passive]).chunk(2, dim=-1)
        return 2 * torch.tanh(log_scale / 2), shift

    def _call(self, z: Tensor) -> Tensor:
        log_scale, shift = self.parameters_of(z)
        return z.index_copy(-1, self.active, z[..., self.active] * log_scale.exp() + shift)

    def _inverse(self, x: Tensor) -> Tensor:
        log_scale, shift = self.parameters_of(x)
        return x.index_copy(-1, self.active, (x[..., self.active] - shift) * (-log_scale).exp())

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return self.parameters_of(x)[0].sum(-1)


def transforms(channels: int, size: tuple[int, int]) -> Any:
    """Build a TransformedDistribution of custom couplings and torch's affine transforms."""
    parts: list[Transform] = []
    for block in range(BLOCKS):
        parts.append(Coupling(channels, flip=block % 2 == 1))
        affine = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.ones(channels))
        parts.append(AffineTransform(*affine, event_dim=1))
    return TransformedDistribution(Independent(Normal(torch.zeros(channels), torch.ones(channels)), 1), parts)


class MapFlow(nn.Module):
    """Custom module: couplings with 3x3 convolutions on whole maps, which reverse the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kept = channels // 2
        sizes = [(self.kept, 2 * (channels - self.kept))] * BLOCKS
        self.nets = nn.ModuleList(convolutions(inputs, outputs) for inputs, outputs in sizes)
        self.log_scales = nn.Parameter(torch.zeros(BLOCKS, channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for net, constant in zip(self.nets, self.log_scales, strict=True):
            a, b = x[:, : self.kept], x[:, self.kept :]
            log_scale, shift = self.scale_and_shift(net, a)
            x = torch.cat((a, b * log_scale.exp() + shift), 1).flip(1) * constant.exp()
            log_det = log_det + log_scale.sum((1, 2, 3)) + constant.sum() * x[0, 0].numel()
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        for net, constant in zip(reversed(self.nets), self.log_scales.flip(0), strict=True):
            z = (z * (-constant).exp()).flip(1)
            a, b = z[:, : self.kept], z[:, self.kept :]
            log_scale, shift = self.scale_and_shift(net, a)
            z = torch.cat((a, (b - shift) * (-log_scale).exp()), 1)
        return z

    @staticmethod
    def scale_and_shift(net: nn.Module, a: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = net(a).chunk(2, dim=1)
        return 2 * torch.tanh(log_scale / 2), shift


LIBRARIES = {
    "freia": Library(
        "SequenceINN of 4 AllInOneBlocks on (C, H, W), alternately with 3x3 and 1x1 convolutions",
        *("sample", freia, sample_log_prob, ("FrEIA", "FrEIA")),
    ),
    "anomalib": Library(
        "FastFlow's flow with its defaults: 8 steps on (C, H, W), alternately with 3x3 and 1x1 convolutions",
        *("sample", anomalib, sample_log_prob, ("anomalib", "anomalib")),
    ),
    "nflows": Library(
        "4 times RandomPermutation, LULinear and AffineCouplingTransform, on vectors",
        *("location", nflows, row_log_prob, ("nflows", "nflows")),
        declared=True,
    ),
    "normflows": Library(
        "4 times MaskedAffineFlow and ActNorm, on vectors",
        *("location", normflows, row_log_prob, ("normflows", "normflows")),
        declared=True,
    ),
    "zuko": Library(
        *("MAF of 3 transforms, on vectors", "location", zuko),
        lambda yours, x: yours().log_prob(x.permute(0, 2, 3, 1)),
        ("zuko", "zuko"),
    ),
    "torch": Library(
        "TransformedDistribution of 4 couplings and AffineTransforms, on vectors",
        *("location", transforms, row_log_prob),
    ),
    "callable": Library(
        "nn.Module of 4 couplings with 3x3 convolutions on (C, H, W)",
        *("sample", lambda channels, size: MapFlow(channels), sample_log_prob),
        declared=True,
    ),
}
