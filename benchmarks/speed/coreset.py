"""Coreset selection against anomalib's KCenterGreedy: `python -m benchmarks.speed.coreset [--json FILE]`.

Features are those of PatchCore: strides 8 and 16 of EfficientNet-Lite0 at 256 px, 3x3 averages, the coarser map resized
to the finer, all locations of the good training images. Selected are 10 %, from the same start, in the same vectors:
without a random projection, which with anomalib's default has more channels (313) than these features (152).

`full`       all locations. anomalib's time for one selection does not depend on how many were made, and all of them
             would take more than an hour: some of its selections are timed in slices between whole runs of ours, and
             its total is their mean times the count. These selections are compared with ours.
`part`       every tenth location, both sides whole, in turns; all indices are compared
`noise`      the same for normal noise, in which there is nothing to leave out
`memory`     peak of resident memory above that of the vectors, for 1e6 vectors of noise, in a fresh process
`large`      1e6 vectors, and 1,536 channels as of WRN-50, each in a fresh process: seconds and added memory of 64
             selections, and of the nearest of 1,024 queries; the floor is a large square product's CPU time
`neighbors`  `nearest` for 1024 queries in 32,768 vectors against torch.cdist with topk, and faiss where installed

Where other processes use the same cores, set OMP_WAIT_POLICY=PASSIVE for both sides: threads that wait for each other
otherwise spin, and small operations take a hundred times as long.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semflow.data import open_dataset
from semflow.features import TimmFeatures
from semflow.features.timm_module import load_timm
from semflow.functional import k_center, nearest

from ..shared.record import provenance, versions, write_json
from .timing import (
    Seconds,
    all_threads,
    apart,
    in_turns,
    peaks,
    ratio,
    square_products,
    stopwatch,
    using_threads,
    watching_memory,
)

SHARE = 0.1
SECTIONS = ("full", "neighbors", "noise", "part", "memory", "large")
LARGE = ["1000000x152", "100000x1536", "1000000x1536"]


class Direct:
    """anomalib's sampler, advanced a few selections at a time in the given vectors."""

    def __init__(self, x: Tensor, start: int) -> None:
        os.environ.setdefault("TQDM_DISABLE", "1")
        load_timm()  # lets anomalib import torchvision without its operators
        from anomalib.models.components.sampling import KCenterGreedy

        self.sampler = KCenterGreedy(x, SHARE)
        self.sampler.features = x
        self.found = [torch.tensor(start)]

    def select(self, count: int) -> None:
        """Run the loop of its `select_coreset_idxs` until there are `count` more."""
        for _ in range(count):
            self.sampler.update_distances(self.found[-1])
            index = self.sampler.get_new_idx()
            self.sampler.min_distances.scatter_(0, index[None, None], 0.0)
            self.found.append(index)

    def indices(self) -> Tensor:
        return torch.stack(self.found)


def features(folder: Path, images: int | None = None) -> Tensor:
    """Return the vectors (N, 152) of the good training images."""
    extractor = TimmFeatures("tf_efficientnet_lite0", "packaged", (8, 16), image_size=256)
    data = open_dataset(folder, "train", image_size=256)
    found = []
    for first in range(0, min(len(data), images or len(data)), 8):
        batch = torch.stack([data[i].image for i in range(first, min(first + 8, len(data)))])
        fine, coarse = (F.avg_pool2d(level, 3, 1, 1) for level in extractor(batch))
        both = torch.cat([fine, F.interpolate(coarse, size=fine.shape[2:], mode="bilinear")], 1)
        found.append(both.permute(0, 2, 3, 1).reshape(-1, both.shape[1]))
    return torch.cat(found)


def sized(x: Tensor) -> dict[str, int]:
    return {"vectors": len(x), "channels": x.shape[1], "selected": int(len(x) * SHARE)}


def measure_full(x: Tensor, start: int, slices: int, size: int) -> dict[str, Any]:
    direct, count = Direct(x, start), int(len(x) * SHARE)
    theirs: list[Seconds] = []
    ours: list[Seconds] = []
    for turn in range(slices):
        if turn:
            with stopwatch() as passed:
                found = k_center(x, SHARE, start=start)
            ours.append(passed())
        with stopwatch() as passed:
            direct.select(size)
        theirs.append(Seconds(*(seconds / size for seconds in passed())))
    # Each run of ours is compared with the mean of the slices before and after it.
    around = [
        Seconds(*(count * (a + b) / 2 for a, b in zip(*pair, strict=True))) for pair in itertools.pairwise(theirs)
    ]
    prefix = direct.indices()
    if not torch.equal(prefix, found.indices[: len(prefix)]):
        raise SystemExit("the first selections differ from anomalib's")
    return sized(x) | {
        "radius": found.radius,
        "selections_of_anomalib": len(prefix) - 1,
        "anomalib_seconds_per_selection": [round(one.wall, 4) for one in theirs],
        "anomalib_total": "extrapolated: seconds per selection times the count",
        "semflow_seconds": [round(one.wall, 2) for one in ours],
        "semflow_cpu_seconds": [round(one.cpu, 2) for one in ours],
        "speedup": ratio({"theirs": around, "ours": ours}, "theirs", "ours", "wall"),
        "equal_indices": len(prefix),
    }


def measure_whole(x: Tensor, start: int, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[Seconds]] = {"theirs": [], "ours": []}
    for _ in range(rounds):
        direct = Direct(x, start)
        with stopwatch() as passed:
            direct.select(int(len(x) * SHARE) - 1)
        seconds["theirs"].append(passed())
        with stopwatch() as passed:
            found = k_center(x, SHARE, start=start)
        seconds["ours"].append(passed())
        if not torch.equal(direct.indices(), found.indices):
            raise SystemExit("the selected indices differ from anomalib's")
    return sized(x) | {
        "anomalib_seconds": [round(one.wall, 2) for one in seconds["theirs"]],
        "semflow_seconds": [round(one.wall, 2) for one in seconds["ours"]],
        "speedup": ratio(seconds, "theirs", "ours", "wall"),
        "equal_indices": len(found.indices),
    }


def peak_of_selection(number: int, channels: int, count: int) -> Sequence[int]:
    x = torch.randn(number, channels, generator=torch.Generator().manual_seed(0))
    k_center(x[:2000], 400)  # loads what the first call loads
    with watching_memory("cpu") as peak:
        k_center(x, count)
        return [peak()]


def measure_large(number: int, channels: int, selections: int = 64, queries: int = 1024) -> dict[str, Any]:
    """Return seconds, added MiB and the share of the floor for clustered vectors; runs in a process of its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, channels, generator=generator).mul_(0.3)
    centers = torch.randn(64, channels, generator=generator)
    for piece in x.split(64):  # in place, since x may take gigabytes
        piece += centers[: len(piece)]
    asked = x[torch.randint(number, (queries,), generator=generator)] + 0.1
    products, operations = square_products()
    rate = operations / min(one.cpu for some in in_turns(products, 3).values() for one in some)
    k_center(x[:2000], min(400, number))  # loads what the first call loads
    found: dict[str, Any] = {"vectors": number, "channels": channels}
    runs: dict[str, Callable[[], object]] = {
        "selection": lambda: k_center(x, selections, start=0),
        "nearest": lambda: nearest(asked, x),
    }
    for name, run in runs.items():
        with watching_memory("cpu") as peak, stopwatch() as passed:
            run()
            cpu, wall = passed()
            found[name] = {"cpu": round(cpu, 2), "wall": round(wall, 2), "added_mib": round(peak() / 2**20)}
    found["nearest"]["floor"] = round(2.0 * queries * number * channels / rate / cpu, 4)  # the last run's
    return found


def by_cdist(queries: Tensor, memory: Tensor, k: int) -> object:
    return torch.cdist(queries, memory).topk(k, largest=False)


def measure_neighbors(x: Tensor, rounds: int) -> dict[str, Any]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    queries, memory = x[order[:1024]], x[order[1024 : 1024 + 32_768]]
    found: dict[str, Any] = {"queries": len(queries), "vectors": len(memory), "channels": x.shape[1]}
    for k in (1, 9):
        runs: dict[str, Callable[[], object]] = {
            "nearest": partial(nearest, queries, memory, k),
            "cdist": partial(by_cdist, queries, memory, k),
        }
        if find_spec("faiss") is not None:
            import faiss  # type: ignore[import-not-found]

            faiss.omp_set_num_threads(torch.get_num_threads())
            index = faiss.IndexFlatL2(x.shape[1])
            index.add(memory.numpy())
            runs["faiss"] = partial(index.search, queries.numpy(), k)
        seconds = in_turns(runs, rounds)
        true = torch.cdist(queries.double(), memory.double(), compute_mode="donot_use_mm_for_euclid_dist")
        expected = true.topk(k, largest=False).values
        error = (nearest(queries, memory, k)[0] - expected).abs() / expected
        found[f"k{k}"] = {
            "seconds": {name: round(statistics.median(one.wall for one in some), 3) for name, some in seconds.items()},
            "cpu_seconds": {
                name: round(statistics.median(one.cpu for one in some), 3) for name, some in seconds.items()
            },
            "largest_relative_error": float(f"{error.max():.1e}"),
        } | {f"vs_{name}": ratio(seconds, name, "nearest", "wall") for name in runs if name != "nearest"}
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run the sections and print or write them."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed.coreset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mvtec/screw"), help="a category of MVTec AD")
    parser.add_argument("--images", type=int, help="use the first images only")
    parser.add_argument("--slices", type=int, default=3, help="slices of anomalib's selections, one more than our runs")
    parser.add_argument("--selections", type=int, default=60, help="selections of anomalib per slice")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of `part` and `noise`")
    parser.add_argument("--noise", type=int, default=16_384, help="vectors of `noise`")
    parser.add_argument("--memory", type=int, default=1_000_000, help="vectors of `memory`")
    parser.add_argument("--seed", type=int, default=0, help="draws the start and the noise")
    parser.add_argument("--threads", type=int, default=all_threads())
    parser.add_argument("--large", nargs="+", default=LARGE, metavar="VECTORSxCHANNELS", help="rows of `large`")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--json", type=Path, help="file for the results; --only keeps the rest of it")
    options = parser.parse_args(words)
    command = ["python", "-m", "benchmarks.speed.coreset", *(sys.argv[1:] if words is None else words)]
    report = provenance(command) | {"versions": versions("anomalib", "faiss-cpu")}
    report |= {"seed": options.seed, "threads": options.threads, "load_before": round(os.getloadavg()[0], 1)}
    report["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "not set")
    record, some = dict(report), options.only != list(SECTIONS)
    if some and options.json and options.json.is_file():
        report = json.loads(options.json.read_text("utf-8"))
    generator = torch.Generator().manual_seed(options.seed)
    with using_threads(options.threads), torch.inference_mode():
        given = set(options.only) - {"large"}
        x = features(options.data, options.images) if given else torch.zeros(10, 152)
        part, noise = x[::10].contiguous(), torch.randn(options.noise, x.shape[1], generator=generator)
        start = int(torch.randint(len(part), (), generator=generator))
        sections: dict[str, Callable[[], Any]] = {
            "full": lambda: measure_full(x, start, options.slices, options.selections),
            "neighbors": lambda: measure_neighbors(x, 5),
            "noise": lambda: measure_whole(noise, start % len(noise), options.rounds),
            "part": lambda: measure_whole(part, start, options.rounds),
            "memory": lambda: {
                "vectors": options.memory,
                "channels": x.shape[1],
                "selected": 400,
                "added_peak_mib": peaks(peak_of_selection, options.memory, x.shape[1], 400)[0],
            },
            "large": lambda: [
                apart(measure_large, *map(int, row.split("x"))) | ({"record": record} if some else {})
                for row in options.large
            ],
        }
        for name in options.only:
            report[name] = sections[name]()
            print(name, report[name], flush=True)
            if options.json:
                write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
