import torch, pytest
from helpers.emulated_cuda import emulated_cuda, Emulated
from helpers.recipe_cases import ALL, small, images, stack
from semflow.training import fit

def test_basic(monkeypatch):
    with emulated_cuda(monkeypatch) as device:
        x = torch.arange(6.).to("cuda:0")
        assert isinstance(x, Emulated)
        assert x.sum().item() == 15
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(6)
        y = torch.tensor([1.0, 2.0], device="cuda:0")
        assert y.tolist() == [1, 2]
        lin = torch.nn.Linear(6, 2).to("cuda:0")
        lin(x).sum().backward()
        assert lin.weight.grad.device.type == "cuda"
        o = torch.optim.Adam(lin.parameters(), fused=True)
        o.step()
        print(device.waits)

@pytest.mark.parametrize("name", ALL)
def test_fit(name, monkeypatch):
    d = small(name)
    with emulated_cuda(monkeypatch) as device:
        fit(d, images(6), epochs=1 if d.trainable() else None, batch_size=3, device="cuda:0", progress=False, calibration=images(9, 5))
        print(d.predict(stack(images(2,1))).score.cpu())
        for k, v in sorted(device.waits.items()): print(v, k)
