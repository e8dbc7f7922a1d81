"""Frames without a part, scored after training: a detector that takes them for good images is not to be trusted."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from semflow._channels import has_region
from semflow.detectors import Detector
from semflow.detectors.collapse import ADVICE, collapsed
from semflow.detectors.normal_scores import NormalScores
from semflow.errors import TrainingError

from .cache import NormalImages

LEVEL = 0.05
"""Fraction of good images that may score as high as a frame, if the detector has no false-alarm rate."""


def frames_without_part(height: int, width: int) -> dict[str, Tensor]:
    """Return a black, a white, a gray and a noise image (3, H, W) by name.

    >>> {name: round(frame.mean().item(), 1) for name, frame in frames_without_part(16, 16).items()}
    {'black': 0.0, 'white': 1.0, 'gray': 0.5, 'noise': 0.5}
    """
    levels = {"black": 0.0, "white": 1.0, "gray": 0.5}
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    return {**{name: torch.full((3, height, width), level) for name, level in levels.items()}, "noise": noise}


def score_frames(detector: Detector, normal: NormalScores, images: NormalImages, advice: str = ADVICE) -> Tensor:
    """Return the scores of frames without a part, of the size of the images, in every process.

    Args:
        detector: trained detector.
        normal: scores and maps of the images, from `fit_score`.
        images: the normal images, after a pass over them.
        advice: end of the error message.

    Raises:
        TrainingError: If images and frames all have one score, or one value in their maps.
    """
    return images.processes.first(lambda: _scored(detector, normal, images.size, advice))


@torch.no_grad()
def _scored(detector: Detector, normal: NormalScores, size: tuple[int, int], advice: str) -> Tensor:
    frames = torch.stack(list(frames_without_part(*size).values()))
    if has_region(detector.provenance.channels):  # without a part, but with the whole image as its region
        frames = torch.cat([frames, torch.ones_like(frames[:, :1])], 1)
    found = [detector(frame) for frame in frames.to(detector.device).split(1)]
    scores, maps = (torch.cat([p[k].float().cpu() for p in found]) for k in range(2))
    same = collapsed(torch.cat([normal.scores.float(), scores]))
    if same:
        raise TrainingError(f"scores must differ between good images and empty frames, but got {same}; {advice}")
    highest = detector.scorer.ceilings[0]
    if normal.scores.median() >= highest * (1 - 1e-6):
        same = f"{normal.scores.median():.4g} for half of them"
        raise TrainingError(f"scores of good images must be below the highest, {highest:.4g}, but got {same}; {advice}")
    if detector.localizes and min(size) > max(getattr(detector.features, "strides", (1,))):
        pixels = maps[maps > -torch.inf]
        ends = torch.quantile(pixels[:: pixels.numel() // 2**20 + 1], torch.tensor([0.01, 0.99]))
        same = collapsed(torch.tensor([*normal.span(), *ends.tolist()]))
        if same:
            value = f"{normal.span()[0]:g} everywhere"
            raise TrainingError(f"maps must differ between good images and empty frames, but got {value}; {advice}")
    return scores


def record_frames(detector: Detector, normal: NormalScores, scores: Tensor) -> None:
    """Record the scores of frames in the detector's provenance, with the fraction of good images that score as high.

    The good images are those of the calibration, if there is one.
    """
    good = normal.scores if detector.calibration.scores is None else detector.calibration.scores.cpu()
    shares = (good.double() >= scores.double()[:, None]).double().mean(1).tolist()
    frames = {
        name: {"score": float(f"{score:.6g}"), "good_images_as_high": round(share, 4)}
        for name, score, share in zip(frames_without_part(1, 1), scores.tolist(), shares, strict=True)
    }
    detector.provenance = replace(detector.provenance, frames=frames)


def taken_for_good(frames: Mapping[str, Mapping[str, Any]], false_alarm_rate: float | None = None) -> list[str]:
    """Return the names of the frames that score as a good image would.

    >>> taken_for_good({"black": {"score": 0.2, "good_images_as_high": 0.6}, "white": {"score": 9.0,
    ...     "good_images_as_high": 0.0}})
    ['black']
    """
    level = LEVEL if false_alarm_rate is None else false_alarm_rate
    return [name for name, frame in frames.items() if frame["good_images_as_high"] > level]
