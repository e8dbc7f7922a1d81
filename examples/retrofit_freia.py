"""Add predicted statistics to a FrEIA flow with three lines of code.

    python examples/retrofit_freia.py

Needs the extra `freia`. A FrEIA flow on backbone features is trained on good crops of the demo's brick images, without
and with predicted statistics. Both are evaluated on the same defects.
"""

import argparse
from pathlib import Path

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from textures import data_folder
from torch import Tensor, nn

import semflow
from semflow.data import open_dataset
from semflow.features import TimmFeatures
from semflow.metrics import pixel_metrics
from semflow.nn import FeatureStatisticsNetwork

CHANNELS, STRIDE = 40, 8


def subnet(inputs: int, outputs: int) -> nn.Module:
    """Return a subnet of 1 x 1 convolutions for FrEIA's blocks."""
    return nn.Sequential(nn.Conv2d(inputs, 64, 1), nn.ReLU(), nn.Conv2d(64, outputs, 1))


def freia_flow(side: int) -> SequenceINN:
    """Return your flow."""
    torch.manual_seed(0)
    inn = SequenceINN(CHANNELS, side, side)
    for _ in range(4):
        inn.append(AllInOneBlock, subnet_constructor=subnet)
    return inn


def main(data: Path | None, output: Path, steps: int) -> dict[str, float]:
    """Return the pixel AUROC without and with predicted statistics."""
    output.mkdir(parents=True, exist_ok=True)
    root = data_folder(data, output / "brick")
    features = TimmFeatures("tf_efficientnet_lite0", "packaged", (STRIDE,), image_size=128)
    train, test = (open_dataset(root, split, 128) for split in ("train", "test"))
    good = torch.stack([train[i].image for i in range(len(train))])
    images = torch.stack([test[i].image for i in range(len(test))])
    masks = torch.stack([test[i].anomaly_mask for i in range(len(test))])
    with torch.no_grad():
        (maps,), (test_maps,) = features(good), features(images)
    mean, deviation = maps.mean((0, 2, 3), keepdim=True), maps.std((0, 2, 3), keepdim=True)
    maps, test_maps = (maps - mean) / deviation, (test_maps - mean) / deviation

    found = {}
    for name in ("standard normal", "with statistics"):
        flow = semflow.as_flow(freia_flow(maps.shape[-1]))
        if name == "standard normal":
            model = semflow.with_statistics(flow, None)
        else:
            network = FeatureStatisticsNetwork(maps.shape[1])
            model = semflow.with_statistics(flow, semflow.InverseGammaVariance(network, mode=1.0))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            chosen = torch.randperm(len(maps), generator=generator)[:8]
            loss: Tensor = model.loss(maps[chosen]).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            heat = model.anomaly_map(test_maps, size=128)
        found[name] = pixel_metrics(heat, masks).auroc
        print(f"{name:<16} pixel AUROC {found[name]:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/retrofit_freia"))
    parser.add_argument("--steps", type=int, default=60)
    main(**vars(parser.parse_args()))
