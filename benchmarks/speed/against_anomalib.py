"""Speed of FastFlow and CFLOW-AD against anomalib's, at its fastest setting, with its weights on both sides.

`semflow.adapters.from_freia` reads anomalib's flow, and the anomaly maps of both sides are compared first. Both
backbones have the same weights; features are given where only flows are measured.

- `fastflow_train`: normalized features to Adam's step, with anomalib's loss on both sides, without anomalib's learned
  affine of the layer norm, which the recipe does not have
- `fastflow_infer`, `cflow_infer`: features to anomaly map and score; `_whole`: images, normalized for anomalib
- anomalib's settings: features contiguous or channels_last; for CFLOW-AD fibers of 64, its default and the published
  comparison, and for `cflow_infer_best_chunk` the fastest of 64, 256, 1024 and all at once
"""

import gc
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from semflow.adapters import from_freia
from semflow.detectors import Detector
from semflow.features import TimmFeatures
from semflow.features.timm_module import load_timm
from semflow.flows import ScaleWise
from semflow.recipes import Backbone, ConvCouplings, Couplings, cflow_ad, fastflow

from .flows import Plan
from .timing import Report, Variant, best, in_turns, missing, ratio, using_threads

__all__ = ["measure_cflow", "measure_fastflow"]

Run = Callable[[], object]
SIDE = 256
EVERYTHING = 1 << 30


def import_anomalib() -> tuple[Any, Any]:
    """Return its two models, after the workaround of `benchmarks.reproduce.peers` for torchvision without operators."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    load_timm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from anomalib.models.image.cflow.torch_model import CflowModel
        from anomalib.models.image.fastflow.torch_model import FastflowModel
    return FastflowModel, CflowModel


class Given(nn.Module):
    """Backbone that returns its input, to measure the flows alone."""

    def __init__(self, maps: Any) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Any:
        return self.maps


def fastflow_pair(backbone: str, steps: int) -> tuple[Detector, Any]:
    """Return the recipe and anomalib's model, which compute the same function."""
    theirs = import_anomalib()[0](
        (SIDE, SIDE), backbone, pre_trained=False, flow_steps=steps, conv3x3_only=backbone == "resnet18"
    )
    ours = fastflow(
        Backbone(backbone, "random", (4, 8, 16)), couplings=ConvCouplings(steps, conv3x3_only=backbone == "resnet18")
    )
    ours.flows = ScaleWise([from_freia(block) for block in theirs.fast_flow_blocks])
    theirs.feature_extractor.load_state_dict(unfolded(ours, backbone))
    return ours.eval(), theirs.eval()


def cflow_pair(backbone: str, blocks: int) -> tuple[Detector, Any]:
    """Return the recipe with hard permutations, anomalib's default, and anomalib's model of the same function."""
    theirs = import_anomalib()[1](
        backbone, ("layer2", "layer3", "layer4"), pre_trained=False, coupling_blocks=blocks, fiber_batch_size=64
    )
    ours = cflow_ad(Backbone(backbone, "random"), couplings=Couplings(blocks, permutation="hard"))
    ours.flows = ScaleWise([from_freia(decoder) for decoder in theirs.decoders])
    theirs.encoder.feature_extractor.load_state_dict(unfolded(ours, backbone))
    return ours.eval(), theirs.eval()


def unfolded(detector: Detector, backbone: str) -> dict[str, Tensor]:
    """Return the backbone's weights before batch norms were folded into convolutions."""
    plain = TimmFeatures(backbone, "random", detector.features.strides, fold=False)
    return dict(plain.network.state_dict())


def images_of(detector: Detector, batch: int) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1], and normalized for the backbone."""
    images = torch.rand(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    normalized = detector.features.image_normalization(images)
    return images, normalized.contiguous(memory_format=torch.channels_last)


def predict(detector: Detector, images: Tensor, maps: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Return anomaly map and score, from features if they are given."""
    return detector.scorer(detector.log_probs(images, maps)[0], (SIDE, SIDE))


def without_grad(run: Run) -> Run:
    def inference() -> object:
        with torch.inference_mode():
            return run()

    return inference


def training_step(flows: nn.ModuleList, maps: list[Tensor], compiled: bool) -> Run:
    """Return a step of forward, anomalib's loss, backward and Adam for the flows of all scales."""
    optimizer = torch.optim.Adam([p for p in flows.parameters() if p.requires_grad], lr=0.0, fused=True)
    calls = [torch.compile(flow, dynamic=False) if compiled else flow for flow in flows]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for call, x in zip(calls, maps, strict=True):
            z, log_det = call(x)
            (0.5 * z.square().sum((1, 2, 3)) - log_det).mean().backward()
        optimizer.step()

    return step


def measure_fastflow(report: Report, variant: Variant, plan: Plan, whole: bool = True) -> None:
    """Measure `fastflow_*`, see `benchmarks.speed`."""
    compiling = ["fastflow_train_compiled", "fastflow_infer_compiled"] if plan.compiled else []
    reason = missing("anomalib", "FrEIA")
    if reason:
        wanted = ["fastflow_train", "fastflow_infer", "fastflow_infer_whole", *compiling]
        report.skip(reason, *(name + variant.suffix for name in wanted))
        return
    with using_threads(variant.threads):
        ours, theirs = fastflow_pair(variant.backbone, plan.blocks)
        images, normalized = images_of(ours, variant.batch)
        maps = ours.features(images)  # normalized over channels and locations
        layouts = {"channels_last": maps, "contiguous": [x.contiguous() for x in maps]}
        backbone = theirs.feature_extractor
        check_fastflow(ours, theirs, images, normalized)

        def infer(given: list[Tensor]) -> Run:
            stub = Given(given)

            def run() -> object:
                theirs.feature_extractor = stub
                return theirs(images)

            return without_grad(run)

        def from_images(given: Tensor) -> Run:
            def run() -> object:
                theirs.feature_extractor = backbone
                return theirs(given)

            return without_grad(run)

        compare = Comparison(report, variant, plan)
        flows, blocks = nn.ModuleList(ours.flows), theirs.fast_flow_blocks
        compare(
            "fastflow_train",
            training_step(flows, maps, False),
            {layout: training_step(blocks, x, False) for layout, x in layouts.items()},
        )
        # Both sides normalize again at the same cost: anomalib by its layer norm, ours without weights.
        norm = nn.functional.layer_norm
        compare(
            "fastflow_infer",
            without_grad(lambda: predict(ours, images, [norm(x, x.shape[1:]) for x in maps])),
            {layout: infer(x) for layout, x in layouts.items()},
        )
        if whole:
            compare(
                "fastflow_infer_whole",
                without_grad(lambda: predict(ours, images)),
                {"channels_last": from_images(normalized), "contiguous": from_images(normalized.contiguous())},
            )
        if compiling:
            torch.compiler.reset()  # compilations of earlier sections count towards the limit
            sides = {"as it is": blocks, "compiled": blocks}
            compare(
                "fastflow_train_compiled",
                training_step(flows, maps, True),
                {name: training_step(x, maps, name == "compiled") for name, x in sides.items()},
            )
            compare(
                "fastflow_infer_compiled",
                chain(flows, maps, True),
                {n: chain(x, maps, n == "compiled") for n, x in sides.items()},
            )
    gc.collect()


def chain(flows: nn.ModuleList, maps: list[Tensor], compiled: bool) -> Run:
    """Apply the flows of all scales, one after the other."""
    calls = [torch.compile(flow, dynamic=False) if compiled else flow for flow in flows]
    return without_grad(lambda: [call(x) for call, x in zip(calls, maps, strict=True)])


def check_fastflow(ours: Detector, theirs: Any, images: Tensor, normalized: Tensor) -> None:
    """Anomalib's map is -mean exp(-mean_c z^2 / 2); ours is minus its logarithm."""
    with torch.no_grad():
        torch.testing.assert_close(
            -torch.exp(-predict(ours, images)[0]), theirs(normalized).anomaly_map[:, 0], rtol=1e-3, atol=1e-4
        )


def measure_cflow(report: Report, variant: Variant, plan: Plan, whole: bool = True) -> None:
    """Measure `cflow_*`, see `benchmarks.speed`."""
    names = ["cflow_infer", "cflow_infer_best_chunk", "cflow_infer_whole"]
    reason = missing("anomalib", "FrEIA")
    if reason:
        report.skip(reason, *(name + variant.suffix for name in names))
        return
    with using_threads(variant.threads):
        ours, theirs = cflow_pair(variant.backbone, plan.blocks)
        images, normalized = images_of(ours, variant.batch)
        maps = ours.features(images)
        encoder, stub = theirs.encoder, Given(dict(zip(theirs.pool_layers, maps, strict=True)))
        check_cflow(ours, theirs, images, normalized, maps)

        def infer(given: Tensor, module: nn.Module, fibers: int) -> Run:
            def run() -> object:
                theirs.encoder, theirs.fiber_batch_size = module, fibers
                return theirs(given)

            return without_grad(run)

        compare = Comparison(report, variant, plan)
        sizes = {"64": 64, "256": 256, "1024": 1024, "all": EVERYTHING}
        seconds = compare(
            "cflow_infer",
            without_grad(lambda: predict(ours, images, maps)),
            {f"fibers {name}": infer(images, stub, size) for name, size in sizes.items()},
            among=["fibers 64"],
        )
        compare.again("cflow_infer_best_chunk", seconds)
        if whole:
            compare(
                "cflow_infer_whole",
                without_grad(lambda: predict(ours, images)),
                {"fibers 64": infer(normalized, encoder, 64)},
            )
    gc.collect()


def check_cflow(ours: Detector, theirs: Any, images: Tensor, normalized: Tensor, maps: list[Tensor]) -> None:
    """Anomalib's map is max S - S with S = sum_k exp(l_k - max l_k) over this batch; ours is -log (S / K)."""
    with torch.no_grad():
        log_probs = ours.log_probs(images, maps)[0]
        ours.scorer.offsets.copy_(torch.stack([x.max() for x in log_probs]))
        typical = len(log_probs) * torch.exp(-predict(ours, images, maps)[0])
        torch.testing.assert_close(typical.max() - typical, theirs(normalized).anomaly_map, rtol=1e-3, atol=1e-3)


class Comparison:
    """Report our time against the fastest of several settings of theirs."""

    def __init__(self, report: Report, variant: Variant, plan: Plan) -> None:
        self.report, self.variant, self.plan = report, variant, plan

    def __call__(self, name: str, ours: Run, theirs: dict[str, Run], among: list[str] | None = None) -> Any:
        seconds = in_turns({"semflow": ours, **theirs}, self.plan.rounds, self.plan.device)
        self.again(name, seconds, among)
        return seconds

    def again(self, name: str, seconds: Any, among: list[str] | None = None) -> None:
        by = self.variant.by
        peer = best(seconds, among or [side for side in seconds if side != "semflow"], by)
        self.report.ratio(name + self.variant.suffix, ratio(seconds, peer, "semflow", by) | {"peer": peer})
