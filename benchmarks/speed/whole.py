"""The processes of `end_to_end`: commands of semflow, anomalib's by `sides`, and the images and models they use."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from semflow.features.timm_module import load_timm

from .files import png_folder
from .start import once

__all__ = ["BATCHES", "METHODS", "Bench", "Sample", "Sizes", "lacking"]

SCRIPT = str(Path(__file__).with_name("sides.py"))
METHODS: dict[str, tuple[str, ...]] = {
    "patchcore": ("patchcore", "coreset", "0.1"),
    "padim": ("padim", "channels", "100"),
    "fastflow": ("fastflow",),
    "cflow": ("cflow_ad", "couplings.permutation", "hard"),
}
"""Recipe of each of anomalib's methods, and the arguments with which both are of the same size."""

BATCHES = ((1, 0), (8, 0), (8, 2))
"""Batch sizes and numbers of loading processes with which anomalib predicts; the fastest is measured."""

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "TQDM_DISABLE": "1"}
"""Environment of anomalib's fit. Without the first variable, heap fragmentation makes its coreset of 30 images take
more than 20 GiB; the second recovers most of the time that the first costs."""


class Sizes(NamedTuple):
    """Numbers and sizes of images, and the side that models resize them to."""

    train: int = 30
    held: int = 20
    images: int = 24
    sides: tuple[int, ...] = (256, 1024)
    many: int = 5000
    model: int = 256


class Sample(NamedTuple):
    """CPU and wall seconds, and peak memory if it was measured."""

    cpu: float
    wall: float
    mib: float | None = None


class Bench:
    """Images, weights and models in a folder, made when they are first needed, and the processes that use them."""

    def __init__(self, work: Path, sizes: Sizes, peer: str, seed: int) -> None:
        self.work, self.sizes, self.peer, self.seed = work.resolve(), sizes, peer, seed
        self.batch, self.workers = BATCHES[1]
        self.work.mkdir(parents=True, exist_ok=True)

    def fresh(self) -> Path:
        """Return a new folder in which a process may write; the last one is removed."""
        shutil.rmtree(self.work / "output", ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=_folder(self.work / "output")))

    def pictures(self, kind: str, side: int | None = None) -> Path:
        """Return a folder of images: `train`, `held`, `images` of some side, or one `one`; no image is in two."""
        sizes, side = self.sizes, side or self.sizes.model
        parts = {"train": sizes.train, "few": 4, "held": sizes.held, "images": sizes.images, "one": 1}
        root = self.work / f"{side}px"
        if not root.is_dir():
            with png_folder(sum(parts.values()), side) as made, tempfile.TemporaryDirectory(dir=self.work) as partial:
                files = sorted(made.iterdir())
                for name, count in parts.items():
                    for file in [files.pop() for _ in range(count)]:
                        shutil.copy(file, _folder(Path(partial, "made", name)))
                Path(partial, "made").rename(root)
        return root / kind

    def many(self) -> Path:
        """Return a folder of many names of the training images, without their content a second time."""
        folder = self.work / "many"
        if not folder.is_dir():
            files = sorted(self.pictures("train").iterdir())
            for k in range(self.sizes.many):
                os.link(files[k % len(files)], _folder(self.work / "many.part") / f"{k:05}.png")
            (self.work / "many.part").rename(folder)
        return folder

    def weights(self, backbone: str) -> Path:
        """Return random weights, which both sides take."""
        path = self.work / f"{backbone}.pt"
        if not path.is_file():
            torch.manual_seed(self.seed)
            torch.save(load_timm().create_model(backbone, pretrained=False).state_dict(), path)
        return path

    def model(self, side: str, method: str, backbone: str) -> Path:
        """Return the trained model of a side; flows are trained for a single step."""
        path = self.work / f"{method} {backbone}{'' if side == 'semflow' else '.ckpt'}"
        if not path.exists():
            self.fit(side, method, backbone)
        return path

    def exported(self, side: str, method: str, backbone: str, precision: str = "float32") -> Path:
        """Return the OpenVINO file of a model, whose precision is that of ours."""
        if side == "semflow":
            path = self.work / f"{method} {backbone} {precision}.xml"
            if not path.exists():
                given = ("--model", self.model(side, method, backbone), "--precision", precision, "--output", path)
                self.semflow("export", *given)
            return path
        folder = self.work / f"{method} {backbone} openvino"
        if not (folder / "weights/openvino/model.bin").exists():
            job = self.job(method, backbone, model=self.model(side, method, backbone), output=_folder(folder))
            self.anomalib("export", job)
        return folder / "weights/openvino/model.xml"

    def job(self, method: str, backbone: str, **more: Any) -> dict[str, Any]:
        made = {
            "side": "anomalib", "method": method, "backbone": backbone, "weights": str(self.weights(backbone)),
            "coreset": 0.1, "batch": self.batch, "workers": self.workers, "work": str(_folder(self.work / "engine")),
        }  # fmt: skip
        return made | {name: str(value) if isinstance(value, Path) else value for name, value in more.items()}

    def semflow(self, *arguments: str | Path) -> Sample:
        """Run a command of semflow."""
        cpu, wall, mib = once(["-m", "semflow", *map(str, arguments)])
        return Sample(cpu, wall, mib)

    def anomalib(self, action: str, job: dict[str, Any]) -> Sample:
        """Run an action of `sides` by the peer's interpreter."""
        environment = os.environ | (ENVIRONMENT if action == "fit" else {"TQDM_DISABLE": "1"})
        cpu, wall, mib = once([SCRIPT, action, json.dumps(job)], self.peer, environment)
        return Sample(cpu, wall, mib)

    def fit(self, side: str, method: str, backbone: str) -> Sample:
        """Train on images and calibrate on others, and keep the first model of each kind."""
        flow = method not in ("patchcore", "padim")
        images = self.pictures("few" if flow else "train")
        if side == "semflow":
            recipe, *values = METHODS[method]
            kept, step = self.work / f"{method} {backbone}", ("--epochs", "1", "--batch-size", "4") if flow else ()
            sample, made = self.fit_recipe(recipe, backbone, images, values, *step)
        else:
            made, kept = self.fresh() / "model.ckpt", self.work / f"{method} {backbone}.ckpt"
            job = self.job(method, backbone, train=images, held=self.pictures("held"), model=made)
            job["batch"], job["workers"] = BATCHES[1]  # whatever is fastest for predict
            sample = self.anomalib("fit", job)
        if not kept.exists():
            made.rename(kept)
        return sample

    def fit_recipe(
        self, recipe: str, backbone: str, images: Path, values: Sequence[str], *more: str
    ) -> tuple[Sample, Path]:
        """Run `semflow fit`; return the run directory too, which the next process removes."""
        made = self.fresh() / "run"
        sample = self.semflow(
            "fit", "--recipe", recipe, "--data", images, "--calibration", self.pictures("held"), "--output", made,
            "--backbone", backbone, "--weights", self.weights(backbone), "--image-size", str(self.sizes.model),
            "--device", "cpu", *(["--set", *values] if values else []), *more,
        )  # fmt: skip
        return sample, made

    def predict(self, side: str, method: str, backbone: str, images: Path, exported: bool = False) -> Sample:
        """Run the command from files to results."""
        output = self.fresh()
        if side == "semflow":
            model = (self.exported if exported else self.model)(side, method, backbone)
            given = ("--model", model, "--input", images, "--output", output / "results", "--device", "cpu")
            return self.semflow("predict", *given)
        model = self.model(side, method, backbone)
        return self.anomalib("predict", self.job(method, backbone, model=model, input=images, output=output))

    def one_at_a_time(
        self, side: str, method: str, backbone: str, images: Path, repeat: int = 2, precision: str = "float32"
    ) -> Sample:
        """Return the median over the images, from file to decision, of an exported file in a process of its own."""
        found = self.fresh() / "times.json"
        self.open_exported(side, method, backbone, images, repeat, found, precision)
        cpu, wall = np.median([(b, a) for a, b in json.loads(found.read_bytes())["times"]], axis=0)
        return Sample(float(cpu), float(wall))

    def open_exported(
        self, side: str, method: str, backbone: str, images: Path, repeat: int = 0, found: Path | None = None,
        precision: str = "float32",
    ) -> Sample:  # fmt: skip
        """Run a process that opens an exported file and decides on an image, and repeats all if asked to."""
        model = self.exported(side.partition(" ")[0], method, backbone, precision)
        job = self.job(method, backbone, model=model, input=images, repeat=repeat, images=self.sizes.images)
        job |= {"side": side, "json": None if found is None else str(found)}
        python = sys.executable if side == "semflow" else self.peer
        cpu, wall, mib = once([SCRIPT, "one_at_a_time", json.dumps(job)], python, os.environ | {"TQDM_DISABLE": "1"})
        return Sample(cpu, wall, mib)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def lacking(python: str, modules: Sequence[str]) -> list[str]:
    """Return those of some modules that an interpreter does not have."""
    code = "import sys, importlib.util as u; print(*(m for m in sys.argv[1:] if u.find_spec(m) is None))"
    return subprocess.run([python, "-c", code, *modules], capture_output=True, text=True, check=True).stdout.split()
