"""Device, sizes, images and detectors shared by all parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow.detectors import Detector
from semflow.recipes import build

from .record import Record


@dataclass(frozen=True)
class Plan:
    """A part's device and sizes, and the record that its results go to; a rehearsal is small."""

    device: str
    small: bool
    data: Path | None
    record: Record

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def backbone(self) -> str:
        return "test_efficientnet" if self.small else "wide_resnet50_2"

    @property
    def size(self) -> int:
        return 64 if self.small else 256

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, those of the targets first."""
        return (4, 1) if self.small else (32, 8, 1)

    def build(self, recipe: str, settings: dict[str, Any] | None = None) -> Detector:
        """Build a recipe with random weights at the size of the run."""
        given = {"backbone": self.backbone, "backbone.weights": "random", "image_size": self.size}
        if self.small and recipe == "sanflow":
            given |= {"couplings.blocks": 1, "couplings.position_channels": 16}
        return build(recipe, given | (settings or {}))

    def images(self, count: int, seed: int = 0) -> Tensor:
        """Return texture with grain, uint8 (B, 3, H, W), in pinned memory on CUDA."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(count, 3, 16, 16, generator=generator)
        smooth = F.interpolate(coarse, size=(self.size, self.size), mode="bicubic", align_corners=False)
        grain = torch.rand(count, 1, self.size, self.size, generator=generator) * 0.1
        contrast = torch.rand(count, 1, 1, 1, generator=generator)  # so that scores differ between images
        images = (smooth * contrast + grain).clamp(0, 1).mul(255).to(torch.uint8)
        return images.pin_memory() if self.cuda else images

    def peak(self) -> float:
        """Return the largest memory of the device since `reset_peak`, in GiB."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else 0.0

    def reset_peak(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()
