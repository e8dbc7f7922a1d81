"""The emulated device refuses what a GPU refuses, and counts where the host waits."""

import pytest
import torch

from helpers.emulated_cuda import CUDA, emulated_cuda

WAITS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0] > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 1],
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "where of one argument": lambda x: torch.where(x > 1),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.long()),
    "index from the host": lambda x: x[torch.tensor([0, 1])],
    "copy from the host": lambda x: x.copy_(torch.ones(3)),
    "tensor of numbers": lambda x: torch.tensor([1.0], device=CUDA),
    "blocking copy": lambda x: torch.ones(3).to(CUDA),
}
WORKS = {
    "arithmetic": lambda x: (2 * x + 1).sum(),
    "number of the host": lambda x: x * torch.tensor(2.0),
    "mask": lambda x: torch.where(x > 1, x, 0.0).masked_fill_(x > 2, 1.0),
    "index of the device": lambda x: x[torch.arange(2, device=CUDA)],
    "filled": lambda x: torch.full((), 2.0, device=CUDA) + x.new_zeros(3),
    "pinned copy": lambda x: torch.ones(3).pin_memory().to(CUDA, non_blocking=True) + x,
}


@pytest.mark.parametrize("kind", [*WAITS, *WORKS])
def test_waits_are_counted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated_cuda(monkeypatch) as device:
        x = torch.tensor([1.0, 2.0, 3.0]).to(CUDA)
        device.waits.clear()
        {**WAITS, **WORKS}[kind](x)
        assert device.waits.total() == (kind in WAITS)


def test_tensors_of_two_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated_cuda(monkeypatch):
        x = torch.ones(3, device=CUDA)
        for wrong in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(1)]), lambda: torch.ones(3) @ x):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()


def test_training_gives_the_values_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(device: torch.device) -> list[float]:
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)).to(device)
        optimizer = torch.optim.Adam(layer.parameters(), 0.1, fused=True)
        for k in range(3):
            optimizer.zero_grad()
            layer(torch.arange(12.0).view(3, 4).to(device) + k).square().sum().backward()
            optimizer.step()
        return [x for p in layer.state_dict().values() for x in p.flatten().tolist()]

    expected = train(torch.device("cpu"))
    with emulated_cuda(monkeypatch):
        assert train(CUDA) == expected
