"""anomalib's PaDiM and PatchCore with their own strides, on the same backbone and with the metrics of the flows.

The features of `semflow.features` replace the models' own backbone, so that a comparison with a flow is one of the
methods and not of the backbones. The coreset is chosen by `semflow.functional.k_center`, which selects the indices that
anomalib's own class selects from the same start and projection, but in minutes where that takes hours.
"""

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from semflow.errors import ConfigError

from ..shared.record import peak_memory
from .tables import Row

if TYPE_CHECKING:
    from torch import Tensor

    from .cells import Cell


COMMON = {"backbone.name": "wide_resnet50_2", "backbone.weights": "hub", "image_size": 256}
RECIPES: dict[str, dict[str, Any]] = {
    "anomalib.padim": {**COMMON, "backbone.strides": (4, 8, 16), "channels": 100},
    "anomalib.patchcore": {**COMMON, "backbone.strides": (8, 16), "coreset": 0.1, "neighbors": 9},
}
"""Settings of the models: number of random channels, share of patches in the coreset, and number of neighbors."""

OURS = (
    Row(
        *("PaDiM", "strides 4, 8, 16; 100 random channels", "padim"),
        paper=tuple((table, "PaDiM") for table in ("table2", "table3", "table1", "visa")),
    ),
    Row(
        *("PatchCore-10", "strides 8, 16; 10 % coreset", "patchcore", {"coreset": 0.1}),
        paper=tuple((table, "PatchCore-10") for table in ("table2", "table3", "table1")),
    ),
    Row(
        *("PatchCore (1 %)", "strides 8, 16; 1 % coreset", "patchcore", {"coreset": 0.01}),
        against="PatchCore-10",  # the paper prints it with WRN-101 only
    ),
    Row("memory_flow", "this library's detector: memory of features or of a flow's latents", "memory_flow"),
)
"""The same methods as recipes of `semflow`, and its own."""

PEERS = (
    Row(*("PaDiM, anomalib", "anomalib's model, its strides, our features", "anomalib.padim"), paper=OURS[0].paper),
    Row(
        *("PatchCore-10, anomalib", "anomalib's model, its strides, our features, its coreset computed by ours"),
        *("anomalib.patchcore", {"coreset": 0.1}),
        paper=OURS[1].paper,
    ),
    Row(
        *("PatchCore (1 %), anomalib", "the same, 1 % coreset", "anomalib.patchcore", {"coreset": 0.01}),
        against="PatchCore-10, anomalib",
    ),
)


def require_anomalib() -> None:
    """Raise ConfigError if anomalib is missing."""
    if find_spec("anomalib") is None:
        raise ConfigError(
            "anomalib must be installed for --peers, but got none; "
            "python -m pip install -c constraints.txt -e '.[peers]'"
        )


def anomalib_version() -> str:
    """Return the installed version without importing anomalib."""
    try:
        return metadata.version("anomalib")
    except metadata.PackageNotFoundError:
        return "not installed"


def measure_peer(cell: "Cell", device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Fit a model in one pass over the normal images, and evaluate it as a flow is evaluated."""
    import numpy as np
    import torch

    from semflow.data import Sample
    from semflow.training import ImageResult, summarize
    from semflow.training.evaluation import METRICS
    from semflow.training.loading import batches, check_device

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(cell.key.seed)  # the coreset is drawn from the global generators
    np.random.seed(cell.key.seed)  # noqa: NPY002
    where = check_device(device)
    arguments = {**RECIPES[cell.recipe], **cell.arguments}
    model = _model(cell.recipe, arguments, cell.key.seed).to(where)
    train, test = (cell.data.open(split, int(arguments["image_size"])) for split in ("train", "test"))
    began, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        model.train()
        for batch in batches(train, 8):
            model(batch.images.to(where))
        if cell.recipe == "anomalib.padim":
            model.fit()
        else:
            model.memory_bank = coreset_of(torch.vstack(model.embedding_store), arguments["coreset"])
            model.embedding_store.clear()
        model.eval()
    trained, trained_cpu = time.perf_counter(), time.process_time()

    def results() -> Iterator[ImageResult]:
        for batch in batches(test, 8):
            with torch.no_grad():
                found = model(batch.images.to(where))
            maps = found.anomaly_map.float().cpu().reshape(len(batch.images), *batch.images.shape[2:])
            scores = found.pred_score.float().cpu().flatten()
            for k, path in enumerate(batch.paths):
                mask = None if batch.anomaly_masks is None else batch.anomaly_masks[k]
                yield ImageResult(Sample(batch.images[k], int(batch.labels[k]), mask, path), float(scores[k]), maps[k])

    summary = summarize(results()).as_dict()
    return {
        "metrics": {name: summary[name] for name in METRICS},
        "arguments": arguments,
        "epoch": "one pass",
        "epochs": None,
        "steps": None,
        "train_images": len(train),
        "test_images": len(test),
        "train_seconds": round(trained - began, 2),
        "train_cpu_seconds": round(trained_cpu - cpu, 2),
        "evaluate_seconds": round(time.perf_counter() - trained, 2),
        "evaluate_cpu_seconds": round(time.process_time() - trained_cpu, 2),
        "peak_memory_mb": peak_memory(),
        "device": str(where),
        "threads": torch.get_num_threads(),
        "anomalib": anomalib_version(),
    }


def coreset_of(embedding: "Tensor", share: float) -> "Tensor":
    """Return the rows that anomalib's `KCenterGreedy` would select, drawn from the global generators."""
    import torch
    from anomalib.models.components import KCenterGreedy

    from semflow.functional.coreset import k_center

    sampler = KCenterGreedy(embedding, share)
    projected = sampler.model.fit(embedding).transform(embedding)
    start = int(torch.randint(high=len(embedding), size=(1,), device=projected.device))
    return embedding[k_center(projected, sampler.coreset_size, start=start).indices.to(embedding.device)]


def _model(recipe: str, arguments: Mapping[str, Any], seed: int) -> Any:
    """Build anomalib's model with our features instead of its own."""
    require_anomalib()
    import torch
    from torch import nn

    from semflow.features import TimmFeatures
    from semflow.features.timm_module import load_timm

    os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bar of the coreset
    load_timm()  # first: it repairs a torchvision without operators, which anomalib imports
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from anomalib.models.image.padim.torch_model import PadimModel
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    features = TimmFeatures(
        *(arguments[f"backbone.{name}"] for name in ("name", "weights", "strides")),
        image_size=arguments["image_size"],
        seed=seed,
    )
    layers = [str(k) for k in range(len(features.channels))]

    class Named(nn.Module):
        """The feature maps by name, as anomalib expects them."""

        def __init__(self) -> None:
            super().__init__()
            self.features = features

        def forward(self, images: "Tensor") -> dict[str, "Tensor"]:
            return dict(zip(layers, self.features(images), strict=True))

    if recipe == "anomalib.patchcore":
        model: Any = PatchcoreModel(["layer1"], "resnet18", pre_trained=False, num_neighbors=arguments["neighbors"])
    else:
        model = PadimModel("resnet18", ["layer1"], pre_trained=False, n_features=1)
        total = sum(features.channels)
        model.n_features_original, model.n_features = total, min(arguments["channels"], total)
        # The channels of our recipe with this seed, so that the two can be compared.
        model.idx = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: model.n_features]
    model.feature_extractor, model.layers = Named(), layers
    return model
