"""Whole processes against anomalib's: `python -m benchmarks.speed.end_to_end --json FILE [--minutes 20]`.

Both sides have the same images, the same random weights of the same backbone, and models of the same size. Each sample
is a process, and the sides take turns. Ratios are anomalib's median over ours; `--peer` is a Python that has anomalib
and OpenVINO, by default the one that runs this command.

fit       `semflow fit` against Engine.fit, 30 images of 256 px and 20 to calibrate on
predict   `semflow predict`, from PNG files to scores, overlays, maps and a page, against Engine.predict with the images
          that its visualizer writes and a table of scores, with the fastest of some batch sizes and loading processes
exported  from a PNG file to a decision by the exported OpenVINO file, the median over the images in one process,
          against OpenVINOInferencer; by default it computes in bfloat16 on CPUs that have it, and semflow in float32,
          so it is also measured in float32, and semflow with `--precision bf16`
first     one image, from the start of the process to its end: the detector, and the exported file by `open_runner`
memory    peak of `semflow fit` on 5,000 images
parts     the start of `semflow predict` and its decoding, features, flow, score and writing (with all the rest), as
          shares of its CPU time. The backbone is the floor; `near_floor` is its share of the wall time

CPU seconds are those of all threads of a process and of processes that it waited for. They are comparable on a machine
that does other work, where wall seconds are not.

Samples are written to the file one by one, round after round over all rows. The same command adds those that are
missing; with `--work` it also finds its models again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..shared.record import provenance, write_json
from .parts import measure_parts
from .timing import all_threads
from .whole import BATCHES, METHODS, Bench, Sample, Sizes, lacking

SEED = 0
LITE, SMALL, WIDE = "tf_efficientnet_lite0", "resnet18", "wide_resnet50_2"
TARGETS = {"fit patchcore": 4.0, "fit padim": 1.5, "predict": 2.0, "exported": 1.3}
"""Least ratio to anomalib, by the beginning of the name."""
LIMITS = {f"first {LITE}": ("wall", 2.5), f"first {LITE} exported": ("wall", 1.0), "memory": ("mib", 1536.0)}
"""Most seconds or MiB of semflow."""
QUICK = Sizes(6, 10, 2, (64,), 12, 64)

MEMORIES = {"padim": (), "patchcore": ("coreset", "2000"), "memory_flow": ()}
"""Recipes, and arguments, whose peak memory is measured on many images."""

Found = dict[str, Any]
ANOMALIB = ("anomalib", "anomalib float32")


class Row(NamedTuple):
    """A measurement: its section, its name, and a sample of a side."""

    section: str
    name: str
    run: Callable[[str], Sample]
    sides: tuple[str, ...] = ("semflow", "anomalib")


def rows(bench: Bench, backbones: Sequence[str], methods: Sequence[str]) -> Iterator[Row]:
    """Yield the measurements in the order in which each round takes them."""
    near, *far = bench.sizes.sides
    for backbone in backbones:

        def predict(side: str, method: str, kind: str, size: int, backbone: str = backbone) -> Sample:
            return bench.predict(side, method, backbone, bench.pictures(kind, size))

        def exported(
            call: Callable[..., Sample], side: str, method: str, kind: str, backbone: str = backbone
        ) -> Sample:
            return call(side, method, backbone, bench.pictures(kind, near))

        for name in ("patchcore", "padim"):
            yield Row("fit", f"fit {name} {backbone}", partial(bench.fit, method=name, backbone=backbone))
        for name in methods:
            run = partial(predict, method=name, kind="images", size=near)
            yield Row("predict", f"predict {name} {backbone} {near} px", run)
        run = partial(predict, method=methods[0], kind="one", size=near)
        yield Row("first", f"first {backbone}", run)
        run = partial(exported, bench.open_exported, method=methods[0], kind="one")
        yield Row("first", f"first {backbone} exported", run)
        for name in methods:
            run = partial(exported, bench.one_at_a_time, method=name, kind="images")
            yield Row("exported", f"exported {name} {backbone} {near} px", run, ("semflow", *ANOMALIB))
            call = partial(bench.one_at_a_time, precision="bf16")
            run = partial(exported, call, method=name, kind="images")
            yield Row("exported", f"exported {name} {backbone} {near} px bf16", run)
        for size in far:
            for name in methods:
                run = partial(predict, method=name, kind="images", size=size)
                yield Row("predict", f"predict {name} {backbone} {size} px", run)
    for name, values in MEMORIES.items():

        def many(side: str, name: str = name, values: Sequence[str] = values) -> Sample:
            return bench.fit_recipe(name, backbones[0], bench.many(), values)[0]

        yield Row("memory", f"memory {name} {backbones[0]}", many, ("semflow",))


def summary(name: str, found: Mapping[str, Any]) -> Found:
    """Return medians of the samples of a row, ratios, and the target with whether it is met."""
    medians = {
        side: {key: _rounded([one[key] for one in found[side]]) for key in found[side][0]}
        for side in ("semflow", *ANOMALIB)
        if found.get(side)
    }
    result: Found = {"median": medians}
    for side in ANOMALIB if "semflow" in medians else ():
        pairs = list(zip(found["semflow"], found.get(side, ()), strict=False))
        for clock in ("wall", "cpu") if pairs else ():
            ratios = [theirs[clock] / ours[clock] for ours, theirs in pairs]
            ends = {"low": round(min(ratios), 2), "high": round(max(ratios), 2)}
            name_of = f"{clock} ratio{side.removeprefix('anomalib')}"
            result[name_of] = {"median": round(statistics.median(ratios), 2)} | ends
    if "wall ratio" in result:
        least = [value for start, value in TARGETS.items() if name.startswith(start)]
        if least:
            met = {clock: result[f"{clock} ratio"]["median"] >= least[0] for clock in ("wall", "cpu")}
            result["target"] = {"at least": least[0], "met": met}
    key, most = LIMITS.get(name, LIMITS["memory"] if name.startswith("memory") else ("", 0.0))
    if key and "semflow" in medians:
        result["target"] = {"at most": most, "of": key, "met": medians["semflow"][key] <= most}
    return result


def _rounded(values: Sequence[float]) -> float:
    return float(f"{statistics.median(values):.4g}")


class Results:
    """The samples, written to a file after each one, and those of an earlier run of the same commit and sizes."""

    def __init__(self, path: Path | None, about: Found, same: Sequence[str]) -> None:
        self.path, self.about = path, json.loads(json.dumps(about))
        self.samples: dict[str, dict[str, list[Found]]] = {}
        self.more: Found = {}
        self.failed: dict[str, str] = {}
        if path is not None and path.is_file():
            before = json.loads(path.read_text("utf-8"))
            changed = [name for name in same if before.get(name) != self.about[name]]
            if changed:
                raise SystemExit(f"{path} has another {changed[0]}; give another --json, or remove it")
            self.samples = {name: row["samples"] for name, row in before["rows"].items()}
            self.more = before["more"]

    def add(self, row: Row, side: str, sample: Sample) -> None:
        """Keep a sample and print it."""
        values = {key: round(value, 4) for key, value in sample._asdict().items() if value is not None}
        self.samples.setdefault(row.name, {}).setdefault(side, []).append(values)
        print(f"{row.name:46} {side:9} " + ", ".join(f"{key} {value:g}" for key, value in values.items()), flush=True)
        self.write()

    def write(self) -> None:
        """Write the file, if one was asked for."""
        made = {name: summary(name, found) | {"samples": found} for name, found in self.samples.items()}
        if self.path is not None:
            write_json(self.path, {**self.about, "rows": made, "more": self.more, "failed": self.failed})


def measure(results: Results, wanted: Sequence[Row], rounds: int, until: float) -> None:
    """Take the missing samples, one round after the other, until the time is over."""
    for turn in range(rounds):
        for row in wanted:
            for side in row.sides if turn % 2 == 0 else row.sides[::-1]:
                name = f"{row.name}, {side}"
                kept = results.samples.get(row.name, {}).get(side, [])
                if len(kept) > turn or name in results.failed:
                    continue
                if time.monotonic() > until:
                    print("the time is over; the same command adds what is missing", flush=True)
                    return
                try:
                    results.add(row, side, row.run(side))
                except subprocess.CalledProcessError as error:
                    results.failed[name] = (error.stderr.strip().splitlines() or ["no message"])[-1][-300:]
                    print(f"{name}: failed: {results.failed[name]}", flush=True)
                    results.write()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sections = ("fit", "predict", "exported", "first", "memory", "parts")
    parser.add_argument("--json", type=Path, help="file of the samples, their medians and the ratios")
    parser.add_argument("--work", type=Path, help="folder that keeps images and models; by default they are removed")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, help="default: all")
    parser.add_argument("--backbones", nargs="+", default=[LITE, SMALL, WIDE], help="timm models, cheap ones first")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="samples of each row")
    parser.add_argument("--images", type=int, default=Sizes().images, help="images of predict")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no sample after this time")
    parser.add_argument("--peer", default=sys.executable, help="Python with anomalib and openvino, or none")
    parser.add_argument("--quick", action="store_true", help="images of 64 px, one round; for a test")
    options = parser.parse_args(arguments)
    until = time.monotonic() + 60 * options.minutes
    sizes = QUICK if options.quick else Sizes(images=options.images)
    command = ["python", "-m", "benchmarks.speed.end_to_end", *(sys.argv[1:] if arguments is None else arguments)]
    about = provenance(command, packages=("anomalib", "openvino", "Pillow")) | {
        "sizes": sizes._asdict(), "seed": SEED, "threads": all_threads(), "load_before": round(os.getloadavg()[0], 1),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }  # fmt: skip
    results = Results(options.json, about, ("commit", "sizes", "machine", "OMP_NUM_THREADS"))
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), sizes, options.peer, SEED)
        wanted = [row for row in rows(bench, options.backbones, options.methods) if row.section in options.only]
        wanted = available(results, wanted, bench)
        rounds = 1 if options.quick else options.rounds
        choose_batches(results, bench, wanted, options)
        measure(results, wanted, rounds, until)
        for side in sizes.sides if "parts" in options.only else ():
            for method in options.methods:
                name = f"parts {method} {options.backbones[0]} {side} px"
                if name not in results.more and time.monotonic() < until:
                    results.more[name] = measure_parts(bench, method, options.backbones[0], side, rounds)
                    print(name, results.more[name]["shares"], flush=True)
                    results.write()
    for name, found in results.samples.items():
        made = summary(name, found)
        shown = [
            f"{clock} {made[f'{clock} ratio']['median']} x" for clock in ("wall", "cpu") if f"{clock} ratio" in made
        ]
        print(f"{name:46} {', '.join(shown)} {made.get('target', '')}")


def choose_batches(results: Results, bench: Bench, wanted: Sequence[Row], options: argparse.Namespace) -> None:
    """Have anomalib predict with the fastest of `BATCHES`."""
    if not any(row.section == "predict" and "anomalib" in row.sides for row in wanted):
        return
    name = "batches of anomalib"
    if name not in results.more:
        walls, method = {}, "padim" if "padim" in options.methods else options.methods[0]  # which is fitted fast
        for batch, workers in BATCHES:
            bench.batch, bench.workers = batch, workers
            images = bench.pictures("images", bench.sizes.sides[0])
            sample = bench.predict("anomalib", method, options.backbones[0], images)
            walls[f"{batch} images, {workers} processes"] = round(sample.wall, 2)
        results.more[name] = {"wall": walls, "fastest": min(range(len(walls)), key=lambda k: list(walls.values())[k])}
        print(name, results.more[name], flush=True)
        results.write()
    bench.batch, bench.workers = BATCHES[results.more[name]["fastest"]]


def available(results: Results, wanted: Sequence[Row], bench: Bench) -> list[Row]:
    """Leave out what packages are missing for, and choose how anomalib predicts."""
    here = find_spec("openvino") is None
    missing = ["anomalib"] if bench.peer == "none" else lacking(bench.peer, ("anomalib", "openvino"))
    found = []
    for row in wanted:
        exported = row.section == "exported" or row.name.endswith("exported")
        gone = {"semflow"} if here and exported else set()
        gone |= set(ANOMALIB) if "anomalib" in missing or (exported and missing) else set()
        for side in gone & set(row.sides):
            results.failed[f"{row.name}, {side}"] = "not installed"
        found.append(row._replace(sides=tuple(side for side in row.sides if side not in gone)))
    return [row for row in found if row.sides]


if __name__ == "__main__":
    main()
