"""Conversion of FrEIA's all-in-one blocks to this library's flows, weights included."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semflow.errors import ConfigError
from semflow.flows import AffineCoupling, Flow, FlowSequence, GlobalAffine, HardPermutation, SoftPermutation
from semflow.functional import soft_clamp
from semflow.functional.clamp import Clamp
from semflow.nn import ConvSubnet, LocationSubnet, SubnetFactory

from .foreign import describe, first_line
from .freia_flow import condition_index, is_sequence

ATTRIBUTES = (
    "GIN", "_affine", "clamp", "condition_channels", "dims_c", "dims_in", "global_offset", "global_scale",
    "global_scale_activation", "householder", "in_channels", "input_rank", "reverse_pre_permute", "splits", "subnet",
    "w_perm",
)  # fmt: skip
"""Attributes of a block that the conversion reads."""

GAIN = 0.1  # FrEIA multiplies the subnet's output by this constant

WRAP_INSTEAD = "wrap the whole SequenceINN with semflow.as_flow instead"
"""Advice in errors about blocks that cannot be converted."""

Layer = nn.Linear | nn.Conv2d
Built = TypeVar("Built", bound=Flow)


def from_freia(module: nn.Module) -> FlowSequence:
    """Convert a FrEIA flow of all-in-one blocks to the same function in this library's flows.

    An `AllInOneBlock` is z = R (g a(x) + b): an affine coupling a, a global scale g and shift b, and a permutation or
    rotation R; with `reverse_permutation`, z = R (g a(R^-1 x) + b). The conversion gives `AffineCoupling`,
    `GlobalAffine`, and `HardPermutation` or `SoftPermutation`, which are faster.

    FrEIA's vectors (N, C) become (N, C, 1, 1), and its locations (B H W, C) maps (B, C, H, W), both with a log-det per
    location. Maps stay maps; with 1x1 kernels they get a log-det per location, whose sum is FrEIA's. The conditions of
    a block, concatenated, become the `context`. The result has the module's dtype, device and mode.

    The form of the soft clamp is detected: c tanh(s) in FrEIA 0.2 and in anomalib's copy of the block, c tanh(s / c) in
    FrEIA's development version. Finally, every block and its conversion are compared on random inputs.

    Three parts are the same function but train differently: `SIGMOID` and `EXP` global scales become softplus ones, the
    reflections of `learned_householder_permutation` become a fixed rotation, and layers without a bias get a zero one.

    Args:
        module: an `AllInOneBlock`, or a `SequenceINN` of them, of vectors (C,) or maps (C, H, W), with a subnet
            `nn.Sequential(layer, nn.ReLU(), layer)` of linear layers or of convolutions that keep the map's size.

    Raises:
        ConfigError: the module is something else, or has an option without counterpart (`gin_block`, other subnets,
            other kinds of blocks, different conditions); the message names the block and the option.

    Example:
        >>> import torch
        >>> from FrEIA.modules import AllInOneBlock
        >>> def subnet(inputs, outputs):
        ...     return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))
        >>> flow = from_freia(AllInOneBlock([(6,)], subnet_constructor=subnet))
        >>> [type(part).__name__ for part in flow]
        ['AffineCoupling', 'GlobalAffine', 'HardPermutation']
    """
    if is_block(module):
        blocks = {"module": module}
    elif is_sequence(module):
        condition_index(module)
        blocks = {f"module_list[{i}]": block for i, block in enumerate(module.module_list)}  # type: ignore[arg-type]
    else:
        raise ConfigError(f"module must be FrEIA's AllInOneBlock or a SequenceINN of them, but got {describe(module)}")
    flows: list[Flow] = []
    for where, block in blocks.items():
        if not is_block(block):
            raise ConfigError(f"{where} must be an AllInOneBlock, but got {type(block).__qualname__}; {WRAP_INSTEAD}")
        converted = _convert_block(block, where)
        _check_same(block, FlowSequence(converted), where)
        flows += converted
    return FlowSequence(flows).train(module.training)


def _check_same(block: Any, flow: FlowSequence, where: str) -> None:
    """Raise ConfigError if a block and its conversion differ on random inputs: many projects carry a changed copy."""
    like = block.global_scale
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(2, *shape, generator=generator).to(like)

    x, conditions = draw(block.dims_in[0]), [draw(shape) for shape in block.dims_c]
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        try:
            (z,), log_det = block([x], c=conditions)
        except Exception as error:
            raise ConfigError(
                f"{where} must take {tuple(x.shape)} of {x.dtype}, but got {type(error).__name__}: {first_line(error)}"
            ) from error
        context = _as_map(torch.cat(conditions, dim=1)) if conditions else None
        our_z, our_log_det = flow(_as_map(x), context)
    # In float32 the tolerance covers TF32 convolutions; a wrong conversion differs by far more.
    tolerance = 1e-3 if like.dtype in (torch.float32, torch.float64) else 5e-2
    difference = max(_deviation(our_z, _as_map(z)), _deviation(our_log_det.reshape(2, -1).sum(1), log_det))
    if not difference <= tolerance:
        raise ConfigError(
            f"{where} must compute the same as FrEIA's AllInOneBlock, but got results of {describe(block)} that differ "
            f"by {difference:.2g}; {WRAP_INSTEAD}"
        )


def _as_map(x: Tensor) -> Tensor:
    return x[:, :, None, None] if x.dim() == 2 else x


def _deviation(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value, or to 1."""
    difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0)
    return difference.item()


def is_block(module: object) -> bool:
    """Return whether a module has the attributes of an AllInOneBlock; copies of it exist outside FrEIA."""
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in ATTRIBUTES)


def _convert_block(block: Any, where: str) -> list[Flow]:
    """Return the flows that together compute what a block computes; `where` names the block in error messages."""
    if block.GIN:
        raise ConfigError(f"{where}: gin_block must be False, but got True; {WRAP_INSTEAD}")
    if block.input_rank not in (0, 2):
        raise ConfigError(f"{where}: dims_in must be (C,) or (C, H, W), but got {tuple(block.dims_in[0])}")
    if block.in_channels < 2:
        raise ConfigError(f"{where}: dims_in must have at least 2 channels, but got {block.in_channels}")
    permutation = _index_or_matrix(block)
    flows = [_coupling(block, where), _global_affine(block), _permutation(permutation)]
    if block.reverse_pre_permute:
        back = torch.argsort(permutation) if permutation.dim() == 1 else permutation.T.contiguous()
        flows.insert(0, _permutation(back))
    return flows


def _coupling(block: Any, where: str) -> AffineCoupling:
    factory, weights = _convert_subnet(block.subnet, block.splits[0], block.input_rank, where)
    make = partial(
        AffineCoupling,
        block.in_channels,
        factory,
        context_channels=block.condition_channels,
        clamp=float(block.clamp),
        clamp_form=_clamp_form(block, where),
        gain=GAIN,
    )
    return _build(make, {f"subnet.{name}": weight for name, weight in weights.items()})


def _convert_subnet(subnet: nn.Module, passive: int, rank: int, where: str) -> tuple[SubnetFactory, dict[str, Tensor]]:
    """Return a factory of the same subnet and the weights for its result; `passive` is the number of channels of x."""
    first, second = _layers(subnet, rank, where)
    hidden = first.weight.shape[0]
    kernel = first.kernel_size[0] if isinstance(first, nn.Conv2d) else 1
    (w_1, b_1), (w_2, b_2) = ((layer.weight.detach(), _bias(layer)) for layer in (first, second))
    if kernel > 1:
        weights = {"first.weight": w_1, "first.bias": b_1, "second.weight": w_2, "second.bias": b_2}
        return partial(ConvSubnet, hidden=hidden, kernel=kernel), weights
    joint = w_1.flatten(1)  # columns of x, then of the condition
    weights = {"weight_x": joint[:, :passive], "bias": b_1, "output.weight": w_2.flatten(1), "output.bias": b_2}
    if joint.shape[1] > passive:
        weights["weight_context"] = joint[:, passive:]
    return partial(LocationSubnet, hidden=hidden), weights


def _layers(subnet: nn.Module, rank: int, where: str) -> tuple[Layer, Layer]:
    """Return the two layers of a subnet: linear if `rank` is 0, convolutions if it is 2."""
    kind = nn.Conv2d if rank else nn.Linear
    layers = list(subnet.children())
    same = len(layers) == 3 and all(map(isinstance, layers, (kind, nn.ReLU, kind)))
    if not (same and isinstance(subnet, nn.Sequential)):
        names = ", ".join(type(layer).__name__ for layer in layers)
        raise ConfigError(
            f"{where}: the subnet must be Sequential({kind.__name__}, ReLU, {kind.__name__}) for inputs of {rank + 1} "
            f"dimensions, but got {type(subnet).__name__}({names}); {WRAP_INSTEAD}"
        )
    first, second = cast(Layer, layers[0]), cast(Layer, layers[2])
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
        for layer in (first, second):
            height, width = layer.kernel_size
            same = height == width and height % 2 == 1 and layer.padding in ("same", (height // 2, width // 2))
            plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
            if not (same and plain and layer.kernel_size == first.kernel_size):
                raise ConfigError(
                    f"{where}: the convolutions of the subnet must have one odd square kernel size, zero padding that "
                    f"keeps the size, and no stride, dilation or groups, but got {layer}; {WRAP_INSTEAD}"
                )
    return first, second


def _bias(layer: Layer) -> Tensor:
    """Return the layer's bias, or zeros if it has none: the flows here always have one."""
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()


def _clamp_form(block: Any, where: str) -> Clamp:
    """Detect the block's clamp by its results: FrEIA's versions differ in it, but have the same attributes."""
    active, bound = block.splits[1], float(block.clamp)
    unit = [1] * block.input_rank
    scale = torch.linspace(-30, 30, 7, dtype=torch.float64).view(7, 1, *unit).expand(-1, active, *unit)
    shift = torch.full_like(scale, 5.0)
    x = torch.full_like(scale, 2.0)
    with torch.no_grad():
        y, log_det = block._affine(x, torch.cat((scale, shift), dim=1))  # a new tensor: FrEIA 0.2 scales it in place
    forms: tuple[Clamp, ...] = ("tanh", "tanh_unit")
    for form in forms:
        log_scale = soft_clamp(GAIN * scale, bound, form)
        our_y, our_log_det = x * torch.exp(log_scale) + GAIN * shift, log_scale.flatten(1).sum(1)
        if torch.allclose(y, our_y, rtol=1e-9) and torch.allclose(log_det, our_log_det, rtol=1e-9):
            return form
    raise ConfigError(
        f"{where}: the coupling must be FrEIA's, x exp(c tanh(s)) + t or x exp(c tanh(s / c)) + t with (s, t) = {GAIN} "
        f"subnet(x), but got another from {describe(block)}; {WRAP_INSTEAD}"
    )


def _global_affine(block: Any) -> GlobalAffine:
    # In float64 on the CPU, since the inverse of softplus loses digits.
    raw = block.global_scale.detach().to("cpu", torch.float64).flatten()
    scale = block.global_scale_activation(raw)
    gain, beta = GlobalAffine.gain, GlobalAffine.beta
    if not torch.equal(scale, gain * F.softplus(raw, beta=beta)):  # SIGMOID or EXP
        wanted = scale * beta / gain
        # torch's softplus is the identity above 20, so its inverse is too.
        raw = torch.where(wanted > 20, wanted, wanted + torch.log(-torch.expm1(-wanted))) / beta
    weights = {"raw_scale": raw.to(block.global_scale), "shift": block.global_offset.detach().flatten()}
    return _build(partial(GlobalAffine, block.in_channels), weights)


def _index_or_matrix(block: Any) -> Tensor:
    """Return R as the index (C,) of a hard permutation, or as the matrix (C, C) of a rotation."""
    if block.householder:
        w_0 = block.w_0.detach()
        matrix: Tensor = w_0.to("cpu", torch.float64)
        for v in block.vk_householder.detach().to("cpu", torch.float64):
            matrix = matrix - 2 * torch.outer(matrix @ v, v) / v.dot(v)
        return matrix.to(w_0.device, w_0.dtype)
    weight: Tensor = block.w_perm.detach()
    if weight.dim() == 1:  # FrEIA's development version stores the index itself
        return weight
    matrix = weight.flatten(1)
    ones = matrix == 1
    is_hard = (ones | (matrix == 0)).all() and (ones.sum(0) == 1).all() and (ones.sum(1) == 1).all()
    return matrix.argmax(1) if is_hard else matrix


def _permutation(permutation: Tensor) -> Flow:
    if permutation.dim() == 2:
        return _build(partial(SoftPermutation, len(permutation)), {"matrix": permutation})
    flow = HardPermutation(len(permutation), torch.Generator()).to(permutation.device)
    flow.load_state_dict({"index": permutation})
    return flow


def _build(make: Callable[[], Built], weights: dict[str, Tensor]) -> Built:
    """Make a flow with copies of the given weights; on the meta device, so that no random weights are drawn."""
    with torch.device("meta"):
        flow = make()
    flow.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
    return flow
