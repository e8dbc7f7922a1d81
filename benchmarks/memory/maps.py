"""Maps of distances and likelihoods for the images of one category, made when a row needs them."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semflow._channels import in_color
from semflow.bases import Memory, PositionGaussian, SemanticGaussian
from semflow.data import collate
from semflow.features import ConcatenatedMaps, RandomChannels, TimmFeatures, average_pool
from semflow.flows import Flow, coupling_stack
from semflow.functional import border, gaussian_blur, gaussian_kernel, mask_to_grid
from semflow.nn import PositionTables, SinusoidalPosition2d, Statistics
from semflow.objectives import Objective
from semflow.synthesis import Blemishes, CutPaste

from .rows import COARSE, POSITION, SCALES, Kind, Row, Scale, Setup

BATCH, SIDE, STRIDES = 8, 32, (4, 8, 16, 32)
VARIANCE, CHANNELS, RATE, BLOCKS, POSITIONS = 0.1, 100, 2e-3, 4, 64
SHORTEST = 1e-3  # distance, below which its logarithm does not fall
MADE, DEFECTS = 288, 96  # images with synthetic anomalies for training, and with defects to measure

Views = dict[Scale, Tensor]
Turn = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


def turns(row: Row) -> tuple[Turn, ...]:
    """Return how a row turns the training images whose features it stores."""
    mirrored = (partial(torch.flip, dims=(3,)),) if row.mirrored else ()
    rotated = tuple(partial(torch.rot90, k=k, dims=(2, 3)) for k in (1, 2, 3)) if row.rotated else ()
    return same, *mirrored, *rotated


class Maps(NamedTuple):
    """Maps (B, h, w) of the test images, the held-out normal images and the latter with synthetic defects."""

    test: Tensor
    held: Tensor
    defects: Tensor

    def each(self, change: Callable[..., Tensor], *others: "Maps") -> "Maps":
        """Apply a function to the maps of each part."""
        return Maps(*(change(*maps) for maps in zip(self, *others, strict=True)))


class Study:
    """Images of a category and everything that was computed from them.

    Every fifth training image is held out: neither a memory nor a flow sees it.

    Args:
        data: opens the data sets `train` and `test` at an image size.
        setup: settings of the study.
        seed: of the held-out images, the synthetic images, the memories and the flows.
        magnification: by which the images are enlarged before the backbone.
    """

    def __init__(self, data: Any, setup: Setup, seed: int, magnification: float) -> None:
        self.setup, self.seed = setup, seed
        train, test = data.open("train", setup.image_size), collate(list(data.open("test", setup.image_size)))
        self.labels, self.masks = test.labels, test.anomaly_masks
        self.size = round(setup.image_size * magnification)
        self.backbone = self._backbone(STRIDES)
        images = torch.stack([in_color(item.image) for item in train])
        held = torch.arange(len(images)) % 5 == seed % 5
        known, unseen = images[~held], images[held]
        made, self.made_masks = self._made(known, known, CutPaste(), min(MADE, 4 * len(images)), 1)
        marred, self.defect_masks = self._made(unseen, images, Blemishes(), DEFECTS, 2)
        self.images = {"known": known, "made": made, "test": test.images, "held": unseen, "defects": marred}
        self._kept: dict[Any, Any] = {}

    def _backbone(self, strides: tuple[int, ...]) -> TimmFeatures:
        return TimmFeatures(self.setup.backbone, self.setup.weights, strides, image_size=self.size)

    def _made(
        self, images: Tensor, donors: Tensor, synthesis: CutPaste | Blemishes, count: int, stream: int
    ) -> tuple[Tensor, Tensor]:
        """Return images with synthetic defects, whose kinds take turns, and their masks."""
        rng, kinds = np.random.default_rng((self.seed, stream)), synthesis.kinds
        made = [
            synthesis(images[k % len(images)], donors[int(rng.integers(len(donors)))], kinds[k % len(kinds)], rng)
            for k in range(count)
        ]
        found, masks = zip(*made, strict=True)
        return torch.stack(found), torch.stack(masks)

    def batches(self, part: str, turned: Turn = same) -> Iterator[Tensor]:
        """Yield the images of a part, magnified and turned."""
        for batch in self.images[part].split(BATCH):
            x = batch if self.size == batch.shape[2] else F.interpolate(batch, (self.size,) * 2, mode="bilinear")
            yield turned(x)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made under a key before, or make it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def views(self, part: str, pooling: int = 3, turned: Turn = same) -> Views:
        """Return feature maps on the grid of stride 8; those of the usual pooling are kept."""
        if pooling == 3 and turned is same:
            return self.keep(part, lambda: self._views(part, 3, same))  # type: ignore[no-any-return]
        return self._views(part, pooling, turned)

    @torch.no_grad()
    def _views(self, part: str, pooling: int, turned: Turn) -> Views:
        found: list[list[Tensor]] = []
        for x in self.batches(part, turned):
            fine, middle, *others = average_pool(self.backbone(x), pooling, zeros_beyond=True)
            coarse, coarsest = (F.interpolate(one, middle.shape[2:], mode="bilinear") for one in others)
            pairs = torch.cat([middle, coarse], 1), torch.cat([coarse, coarsest], 1)
            found.append([F.avg_pool2d(fine, 2), middle, *pairs])
        return dict(zip((*SCALES, COARSE), map(torch.cat, zip(*found, strict=True)), strict=True))

    def maps(self, row: Row, name: str) -> Maps:
        """Return the map of a row: the sum of its parts, each standardized over the held-out normal images."""
        if name == POSITION:
            return self._position()
        total = None
        for kind, scale in row.parts:
            own = self._of_features(row, scale) if kind == "features" else self.of_flow(kind, scale, row)
            mean, std = own.held.mean(), own.held.std()
            own = own.each(lambda x, mean=mean, std=std: (x - mean) / std)
            total = own if total is None else total.each(torch.add, own)
        assert total is not None
        return total

    def _of_features(self, row: Row, scale: Scale) -> Maps:
        """Return distances to features; all scales of the row are made at once, since their features are."""

        def key(one: Scale) -> tuple[Any, ...]:
            return row.pooling, row.memory, row.mirrored, row.rotated, one

        if key(scale) not in self._kept:
            known = [self.views("known", row.pooling, turned) for turned in turns(row)]
            others = [self.views(part, row.pooling) for part in Maps._fields]
            for one in {one for kind, one in row.parts if kind == "features"}:
                if key(one) not in self._kept:
                    self._kept[key(one)] = self._distances([v[one] for v in known], [v[one] for v in others], row)
        found: Maps = self._kept[key(scale)]
        return found

    @torch.no_grad()
    def _distances(self, known: Sequence[Tensor], others: Sequence[Tensor], row: Row) -> Maps:
        """Return logarithms of distances to the stored vectors of known maps."""
        locations = sum(x[:, 0].numel() for x in known)
        count = min(self.setup.vectors, locations)
        base = Memory("distance", size=count if row.memory == "k-center" else None, seed=self.seed)
        if row.memory == "random":
            vectors = torch.cat([x.movedim(1, 3).flatten(0, 2) for x in known])
            drawn = torch.randperm(locations, generator=torch.Generator().manual_seed(self.seed))[:count]
            base.store(vectors[drawn])
        else:
            accumulator = base.accumulator()
            for x in known:
                accumulator.update(x)
            base.fit(accumulator)
        return Maps(
            *(torch.cat([-base.normality(x) for x in maps.split(BATCH)]).clamp(min=SHORTEST).log() for maps in others)
        )

    @torch.no_grad()
    def _position(self) -> Maps:
        """Return Mahalanobis distances as in PaDiM: strides 4, 8 and 16, a hundred random channels."""
        one = ConcatenatedMaps(self._backbone(STRIDES[:3]), "nearest")
        views = RandomChannels(one, min(CHANNELS, *one.channels), self.seed)
        base = PositionGaussian("distance")
        moments = base.accumulator()
        for x in self.batches("known"):
            moments.update(views(x)[0])
        base.fit(moments)
        return Maps(*(torch.cat([-base.normality(views(x)[0]) for x in self.batches(part)]) for part in Maps._fields))

    def of_flow(self, kind: Kind, scale: Scale, row: Row) -> Maps:
        def make() -> dict[Kind, Maps]:
            flow, code = self.trained(scale, row)
            known, *others = (run(flow, code, self.views(part)[scale]) for part in ("known", *Maps._fields))
            distances = self._distances([known[0]], [z for z, _ in others], Row())
            gain = Maps(*(log_det for _, log_det in others))
            self._kept["spread", scale, row.synthesis, row.under_memory] = gain.held.std(correction=0).item()
            energy = Maps(*(0.5 * z.square().mean(1) / VARIANCE for z, _ in others))
            return {
                "latents": distances,
                "latents with log det": distances.each(torch.sub, gain),
                "NLL": energy.each(torch.sub, gain),
            }

        found: Maps = self.keep((scale, row.synthesis, row.under_memory), make)[kind]
        return found

    def spread(self) -> float:
        """Return the standard deviation of the log-det per channel on held-out normal images, averaged over scales."""
        row = Row()
        for scale in SCALES:
            self.of_flow("latents", scale, row)
        return fmean(self._kept["spread", scale, row.synthesis, row.under_memory] for scale in SCALES)

    def trained(self, scale: Scale, row: Row) -> tuple[Flow, PositionTables]:
        """Train a flow on normal maps and, with synthesis, three times as many with CutPaste anomalies."""
        synthesis = row.synthesis
        known, made = self.views("known")[scale], self.views("made")[scale] if synthesis else None
        side, generator = known.shape[2], torch.Generator().manual_seed(self.seed)
        marked = mask_to_grid(self.made_masks, (side, side), "max")
        near = border(marked)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            options: dict[str, Any] = {"context_channels": POSITIONS, "standardize": True}
            flow = coupling_stack(known.shape[1], BLOCKS, start=math.sqrt(VARIANCE), **options)
        flow[0].fit([known])
        code = SinusoidalPosition2d(POSITIONS)(side, side)
        base, statistics = SemanticGaussian(), Statistics(beta=torch.full((1, 1, 1, 1), VARIANCE))
        objective, steps = Objective(bce=1.0 if synthesis else 0.0, kl=0.0), self.setup.steps
        optimizer = torch.optim.Adam(flow.parameters(), RATE)
        every = max(1, side // SIDE)
        for step in range(steps):
            rate = (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * step / steps)) / 2) * min(1, 0.1 + 9 * step / steps)
            optimizer.param_groups[0]["lr"] = RATE * rate
            normal = torch.randint(len(known), (1 if synthesis else 4,), generator=generator)
            x, mask, ignore = known[normal], torch.zeros(len(normal), side, side, dtype=torch.bool), None
            if made is not None:
                drawn = torch.randint(len(made), (3,), generator=generator)
                x, ignore = torch.cat([x, made[drawn]]), torch.cat([mask, near[drawn]])
                mask = torch.cat([mask, marked[drawn]])
            down, right = torch.randint(every, (2,), generator=generator).tolist()
            x, mask = (v[..., down::every, right::every] for v in (x, mask))
            ignore = None if ignore is None else ignore[:, down::every, right::every]
            z, log_det = flow(x, PositionTables(code.column[right::every], code.row[down::every]))
            if row.under_memory:
                loss = (outside(z) - log_det / z.shape[1]).mean()
            else:
                loss = objective(z, log_det, "location", base, statistics, mask if synthesis else None, ignore).total
            if not loss.isfinite():
                raise ArithmeticError(f"loss must be finite, but got {loss.item()} in step {step} of {steps}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return flow.eval(), code


def outside(z: Tensor) -> Tensor:
    """Return the logarithms (B, h, w) of the distances to the nearest vector of another image."""
    x = z.flatten(2).mT  # (B, N, C)
    found = [
        torch.cdist(own, torch.cat([*x[:image], *x[image + 1 :]])).amin(1).clamp(min=SHORTEST).log()
        for image, own in enumerate(x)
    ]
    return torch.stack(found).view(len(z), *z.shape[2:])


@torch.no_grad()
def run(flow: Flow, code: PositionTables, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return latents and log-det per channel."""
    parts = [flow(x, code) for x in maps.split(BATCH)]
    z = torch.cat([z for z, _ in parts])
    return z, torch.cat([log_det for _, log_det in parts]) / z.shape[1]


def pixels(maps: Tensor, size: int, blur: float) -> Tensor:
    """Resize maps (B, h, w) to the images, and blur them."""
    x = F.interpolate(maps[:, None].float(), (size, size), mode="bilinear")[:, 0]
    return gaussian_blur(x, gaussian_kernel(blur)) if blur else x
