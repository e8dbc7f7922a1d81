"""Correct flows, and flows with one planted fault each."""

import torch
from torch import Tensor, nn


class Sound(nn.Module):
    """Coupling that satisfies every law."""

    event = "location"

    def __init__(self, channels: int = 4, kernel: int = 1) -> None:
        super().__init__()
        self.net = nn.Conv2d(channels // 2, 2 * (channels // 2), kernel, padding=kernel // 2)

    def terms(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.net(passive).chunk(2, dim=1)
        return torch.tanh(scale.to(torch.promote_types(scale.dtype, torch.float32))), shift

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        passive, active = x.chunk(2, dim=1)
        scale, shift = self.terms(passive)
        return torch.cat((passive, active * scale.exp() + shift), dim=1), scale.sum(1)

    def inverse(self, z: Tensor, context: object = None) -> Tensor:
        passive, active = z.chunk(2, dim=1)
        scale, shift = self.terms(passive)
        return torch.cat((passive, (active - shift) * (-scale).exp()), dim=1)


class SoundSample(Sound):
    event = "sample"

    def __init__(self) -> None:
        super().__init__(kernel=3)

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z, log_det.sum((1, 2))


class WrongSign(Sound):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z, -log_det


class WrongSignAtTheIdentity(WrongSign):
    """The fault has no effect at the initial parameters."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)


class WrongAxis(Sound):
    """Sums over rows, which has the right shape if H = C / 2."""

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        passive, _ = x.chunk(2, dim=1)
        return super().forward(x)[0], self.terms(passive)[0].sum(2)


class WrongSpan(SoundSample):
    """Takes the mean over locations instead of the sum."""

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z, log_det / (x.shape[2] * x.shape[3])


class Broadcasts(Sound):
    """Adds a log-det (B,) of the sample to one (B, H, W) of locations, which broadcasts if B == W."""

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z, log_det + 0.1 * log_det.sum((1, 2))


class ScalarLogDet(SoundSample):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z, log_det.sum()


class UndeclaredSample(Sound):
    event = "sample"


class BatchNorm(nn.Module):
    """Batch normalization as a flow; in training the latents of an image depend on the batch."""

    event = "location"

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, momentum=None)

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z = self.norm(x)
        variance = x.var((0, 2, 3), correction=0) if self.training else self.norm.running_var
        log_scale = (self.norm.weight.abs() / (variance + self.norm.eps).sqrt()).log()
        return z, log_scale.sum().to(x).expand(len(x), *x.shape[2:])

    def inverse(self, z: Tensor, context: object = None) -> Tensor:
        norm, shape = self.norm, (-1, 1, 1)
        std = (norm.running_var + norm.eps).sqrt()
        return (z - norm.bias.view(shape)) / norm.weight.view(shape) * std.view(shape) + norm.running_mean.view(shape)


class BatchMean(Sound):
    """Depends on the batch without a gradient and without state."""

    def terms(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = super().terms(passive)
        return scale, shift + 0.01 * passive.detach().mean(0, keepdim=True)


class BatchSize(Sound):
    """Depends on the batch size only."""

    def terms(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = super().terms(passive)
        return scale, shift + 0.01 * len(passive)


class InverseNotFinite(Sound):
    def inverse(self, z: Tensor, context: object = None) -> Tensor:
        return super().inverse(z) * float("nan")


class RoughInverse(Sound):
    def inverse(self, z: Tensor, context: object = None) -> Tensor:
        passive, active = z.chunk(2, dim=1)
        scale, shift = self.terms(passive)
        return torch.cat((passive, (active - shift) / (scale.exp() + 1e-5)), dim=1)


class HalfLogDet(Sound):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z, log_det.bfloat16()


class HalfUnderAutocast(Sound):
    def terms(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.net(passive).chunk(2, dim=1)
        return torch.tanh(scale), shift


class Neighbors(Sound):
    """Depends on neighbors, but declares that it does not."""

    def __init__(self) -> None:
        super().__init__(kernel=3)


class DetachedNeighbors(Sound):
    """Depends on neighbors through `detach`, so that its Jacobian is that of a correct flow."""

    def terms(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = super().terms(passive)
        return scale, shift + passive.detach().roll(1, dims=3)


class ForgottenBuffer(Sound):
    """Has a random permutation that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]), persistent=False)

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return super().forward(x[:, self.order])

    def inverse(self, z: Tensor, context: object = None) -> Tensor:
        return super().inverse(z)[:, self.order.argsort()]


class ForgottenTensor(Sound):
    """Has a random tensor that is not a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.offset = torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return super().forward(x + self.offset.to(x))

    def inverse(self, z: Tensor, context: object = None) -> Tensor:
        return super().inverse(z) - self.offset.to(z)


class InPlace(Sound):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        passive, active = x.chunk(2, dim=1)
        scale, shift = self.terms(passive)
        active.mul_(scale.exp()).add_(shift)
        return x.clone(), scale.sum(1)


class InverseInPlace(Sound):
    def inverse(self, z: Tensor, context: object = None) -> Tensor:
        passive, active = z.chunk(2, dim=1)
        scale, shift = self.terms(passive)
        active.sub_(shift).mul_((-scale).exp())
        return z.clone()


class Dropout(Sound):
    """z is random, log_det is not."""

    def terms(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = super().terms(passive)
        return scale, nn.functional.dropout(shift, 0.5)


class RandomLogDet(Sound):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z, log_det + 0.1 * torch.rand_like(log_det)


class Counter(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        self.calls.add_(1)
        return super().forward(x)


class Unused(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class Detached(Sound):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        passive, active = x.chunk(2, dim=1)
        scale, shift = self.terms(passive)
        return torch.cat((passive, active * scale.exp() + shift.detach()), dim=1), scale.sum(1)


class Branches(Sound):
    """Branches on values, which a graph cannot."""

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return super().forward(x if x.sum() > 0 else x * 1.0)


class Views(Sound):
    """Assumes contiguous memory."""

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return super().forward(x.view(-1).view(x.shape))


class NotFinite(Sound):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z, log_det / 0


class OnlyZ(Sound):
    def forward(self, x: Tensor, context: object = None) -> Tensor:
        return super().forward(x)[0]


class Transposes(Sound):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x)
        return z.mT, log_det


class Raises(Sound):
    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no context, no flow\nand more lines")
