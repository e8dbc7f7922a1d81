"""The color range of anomaly maps: normal images stay uncolored, and defects are bright."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

UNSEEN, LEFT_OUT, SEEN = 0.006, 0.0015, 0.0
"""Fractions of the pixels of later normal images that may be colored, from images that the detector has not seen, from
training images of which each is left out of the base, and from those that a flow was trained on."""

WORST = 5
"""Largest fraction of the pixels of one normal image that is taken into account, as a multiple of the mean."""

SAMPLED = 2048


def sample_pixels(anomaly_map: Tensor) -> Tensor:
    """Return the maximum of each map (B, H, W) and about 2,048 of its pixels, evenly spread, as (B, 1 + P) on the CPU.

    Of a map with a region of interest, they are spread over the region, and fill up with -inf if it is smaller.

    >>> sample_pixels(torch.arange(12.0).view(1, 3, 4))[0, :4].tolist()
    [11.0, 0.0, 1.0, 2.0]
    """
    pixels = anomaly_map.float().flatten(1)
    step = pixels.shape[1] // SAMPLED | 1  # an odd step does not follow a column of an even width
    sampled = torch.cat([pixels.amax(1, keepdim=True), pixels[:, ::step]], 1).cpu()
    for row, values in zip(sampled[:, 1:], pixels, strict=True):
        if not bool((row > -torch.inf).all()):
            inside = values[values > -torch.inf]
            count = min(len(inside), len(row))
            spread = torch.arange(count, device=inside.device) * len(inside) // max(count, 1)
            row[:count], row[count:] = inside[spread].cpu(), -torch.inf
    return sampled


def sampled_values(sampled: Tensor) -> Tensor:
    """Return the sampled pixels in the region of interest, sorted, or the maxima if there are too few of them.

    >>> sampled_values(torch.tensor([[3.0, 1.0, -torch.inf, 0.5]])).tolist()
    [0.5, 1.0]
    """
    # With numpy, which makes no indices: there are 10 million values of 5,000 images.
    pixels = sampled[:, 1:].flatten().numpy()
    pixels = pixels[pixels > -np.inf]
    return torch.from_numpy(np.sort(pixels if len(pixels) else sampled[:, 0].numpy()))


def join_samples(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate results of `sample_pixels`, with equally many pixels of each map if maps have several sizes.

    >>> join_samples([torch.arange(4.0)[None], torch.arange(10.0)[None]]).tolist()
    [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 4.0, 7.0]]
    """
    least = min(part.shape[1] for part in parts) - 1
    steps = [(torch.arange(least) * (part.shape[1] - 1) // max(1, least)) + 1 for part in parts]
    return torch.cat([torch.cat([part[:, :1], part[:, step]], 1) for part, step in zip(parts, steps, strict=True)])


def color_range(sampled: Tensor, share: float = UNSEEN) -> tuple[float, float]:
    """Compute the values of the first and the last color from pixels of n normal images, see `sample_pixels`.

    A pixel is colored if its value is above the first, and has the last color at the second or above.

    - The first is the smallest value that colors at most a fraction share (n - 4) / n of the pixels; with up to four
      images it is the largest value of all. If a later image is exchangeable with the n, on average at most `share` of
      its pixels are colored, provided that it is never more than five times `share` (conformal risk control:
      Angelopoulos et al., 2024).
    - The second lies a third as far above the first as the first above the median. It depends on no defects.

    The promise is 1 %. `UNSEEN` is less, because images of another day resemble the n less than these resemble each
    other. `LEFT_OUT` is less and `SEEN` is 0, because the values of training images are lower; they have no bound.

    >>> values = torch.arange(1001.0).repeat(9, 1)
    >>> [round(x) for x in color_range(values)], [round(x) for x in color_range(values.repeat(11, 1))]
    ([997, 1162], [995, 1160])
    """
    images, ordered = len(sampled), sampled_values(sampled)
    allowed = int(share * (images + 1 - WORST) / images * len(ordered))
    low = (ordered[-1 - allowed] if allowed > 0 else sampled.max()).item()
    median = ordered[len(ordered) // 2].item()
    return low, low + max((low - median) / 3, 1e-6 * max(1.0, abs(low)))
