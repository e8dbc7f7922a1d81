"""Training runs for one process and for several; run as a program, it starts several processes.

python joint_training.py COUNT FOLDER    writes FOLDER/CASE.RANK.safetensors
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from helpers.fitted_base import make_fitted
from helpers.small_detector import make_detector, make_images
from semflow.bases import StandardNormal
from semflow.data import collate
from semflow.detectors import Detector, Provenance
from semflow.features import FrozenFeatures
from semflow.flows import coupling_stack
from semflow.nn import ConvSubnet
from semflow.objectives import PRESETS
from semflow.recipes import Backbone, Couplings, sanflow
from semflow.synthesis import CutPaste, SyntheticAnomalies
from semflow.training import Processes, TrainingConfig, evaluate, fit, optional_flows
from semflow.training.distributed import ALONE
from semflow.training.sharing import shared
from semflow.training.stepping import train_on_batch


def images(count: int = 10):
    return make_images(count)


def whole_maps(**changes) -> Detector:
    """Synthesis, guard, predicted variance with batch norms, standardized channels."""
    detector = make_detector(**{k: v for k, v in changes.items() if k == "synthesis"})
    changes = {"guard": 1, "epochs": 2, **{k: v for k, v in changes.items() if k != "synthesis"}}
    training = replace(detector.provenance.training, **changes)
    detector.provenance = replace(detector.provenance, training=training)
    return detector


def squashed() -> Detector:
    detector = whole_maps()
    detector.objective = PRESETS["reference"]
    return detector


def samples() -> Detector:
    """A flow whose event is the sample, with 3x3 subnets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        features = FrozenFeatures(torch.nn.Conv2d(3, 6, 4, stride=4), channels=(6,), strides=(4,))
        flows = [coupling_stack(6, 2, (ConvSubnet,))]
        detector = Detector(features, flows, StandardNormal())
    detector.provenance = Provenance(training=TrainingConfig(2, 4, 1e-3, "constant"), image_size=32)
    return detector


CASES: dict[str, Callable[[], Detector]] = {
    "synthesis": whole_maps,
    "kept maps": lambda: whole_maps(synthesis=False),
    "clipped": lambda: whole_maps(clip=0.3),
    "groups": lambda: whole_maps(locations=40),
    "squashed": squashed,
    "samples": samples,
    "fitted base": lambda: make_fitted(trained=True),
    "tilted": lambda: whole_maps(tilt=0.05),
    "tilted groups": lambda: whole_maps(tilt=0.05, locations=40),
    "optional flow": lambda: make_fitted(trained=True, synthesis=CutPaste(), optional=True),
    "region": whole_maps,
    "augmented": lambda: make_fitted(trained=True),
    "crossed": lambda: make_fitted(trained=True),
    "crossed base": lambda: make_fitted(trained=False),
}

CROSS = {"calibration": "cross"}
OPTIONS = {
    "fitted base": {"cache_bytes": 0},
    "region": {"region": torch.ones(32, 32).tril(-4), "augment": "rotate,shift"},
    "augmented": {"augment": "flip,light"},
    "crossed": CROSS,
    "crossed base": CROSS,
}


def train(
    case: str, processes: Processes = ALONE, output: Path | None = None, dataset: list | None = None, **options
) -> Detector:
    options = {**OPTIONS.get(case, {}), **options}
    return fit(CASES[case](), dataset or images(), output=output, progress=False, processes=processes, **options)


STARTS = {"as built": 0, "after training": 2}
"""Epochs of SANFlow before its gradient is compared."""


def gradients(start: str, processes: Processes = ALONE) -> dict[str, Tensor]:
    """Return the gradient of default SANFlow, made small, and its loss, for one batch of five images."""
    detector = sanflow(Backbone("test_efficientnet", "random", (4, 8)), 32, Couplings(2, 16, "hard", standardize=True))
    fit(detector, images(), epochs=STARTS[start], synthesis=None, batch_size=5, progress=False)
    training = replace(detector.provenance.training, batch_size=5)
    batch = collate([SyntheticAnomalies(images(5), CutPaste(), seed=0)[i] for i in processes.part(range(5)) or [0]])
    detector.train()
    with shared(detector, processes):
        optimizer = torch.optim.SGD(detector.trainable(), 0.0)
        terms = train_on_batch(
            detector, optimizer, training, batch.images, batch.anomaly_masks, processes=processes, batch=5
        )
    found = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    return {**found, "loss": terms[:1]}


def labeled():
    """5 normal images and 4 with stripes."""
    found = make_images(5, seed=1)
    stripes = (torch.arange(32) % 2).float().expand(3, 32, 32)
    for i, sample in enumerate(make_images(4, seed=2)):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[4 + i : 18 + i, 6:20] = True
        found.append(sample._replace(label=1, anomaly_mask=mask, image=torch.where(mask, stripes, sample.image)))
    return found


def work(rank: int, count: int, folder: Path, stopped: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    processes = Processes(dist.group.WORLD)
    if stopped:
        train(
            "synthesis", processes, folder / "stopped", checkpoint_seconds=0, on_epoch=partial(fail, rank == count - 1)
        )
    for case in CASES:
        detector = train(case, processes, folder / case)
        save_file(dict(detector.state_dict()), folder / f"{case}.{rank}.safetensors")
        if case in ("synthesis", "optional flow"):
            read = train(case, processes, folder / case, resume=True)
            again = read.state_dict()
            if any(not torch.equal(again[name], x) for name, x in detector.state_dict().items()):
                raise RuntimeError("a finished run was not read back")
            chosen = [[flow.used for flow in optional_flows(each)] for each in (detector, read)]
            if chosen[0] != chosen[1] or any(flow.used != bool(flow.choice[0]) for flow in optional_flows(detector)):
                raise RuntimeError(f"the same flows must be used in all processes, but got {chosen}")
        if case == "synthesis":
            found = evaluate(detector, labeled(), batch_size=2, processes=processes)
            (folder / f"metrics.{rank}.json").write_text(json.dumps(found))
    for start in STARTS:
        save_file(gradients(start, processes), folder / f"gradients {start}.{rank}.safetensors")
    dist.destroy_process_group()


def fail(now: bool, detector: Detector, epoch: int) -> None:
    if now and epoch == 2:
        raise RuntimeError("of the last process")


if __name__ == "__main__":
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    children = []
    for rank in range(count):
        child = os.fork()  # imported once, before there is any thread
        if not child:
            code = 1
            try:
                work(rank, count, folder, sys.argv[3:] == ["stopped"])
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
