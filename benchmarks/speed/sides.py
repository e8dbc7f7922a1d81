"""One side of `end_to_end` as a process: `python sides.py ACTION JOB`, where JOB is JSON.

A file that imports nothing of `benchmarks`, so that the start of a process is that of its library. anomalib does all
actions; semflow, which has commands for the others, only `one_at_a_time`.

- `fit`             Engine.fit of `method` on `train`, with thresholds from `held`; its checkpoint goes to `model`
- `predict`         Engine.predict of `model` on the images of `input`, with the images that its visualizer writes to
                    `output`, and scores.csv
- `export`          OpenVINO of `model` in the folder `output`
- `one_at_a_time`   files of `input` to decision and map, one by one, by the exported `model` of `side`
"""

import csv
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

SIZE = (256, 256)
FIBERS = 64  # of CFLOW in training, its default; prediction takes all at once, which is faster
Job = dict[str, Any]


def import_anomalib() -> Any:
    """Import it, even if torchvision is a CUDA build and torch is not."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    import torch

    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch._declared = library  # keeps it alive
    import anomalib.models

    return anomalib.models


def model(job: Job) -> Any:
    """Return the method with the given backbone and weights, on whole images of 256 pixels."""
    import torch

    models, backbone = import_anomalib(), job["backbone"]
    small = "efficientnet" in backbone
    layers = [f"blocks.{k}" for k in (0, 1, 2, 4, 6)] if small else [f"layer{k}" for k in (0, 1, 2, 3, 4)]
    common = {"backbone": backbone, "pre_trained": False, "evaluator": False}
    if job["method"] == "patchcore":
        common["pre_processor"] = models.Padim.configure_pre_processor(SIZE)
        made = models.Patchcore(**common, layers=layers[2:4], coreset_sampling_ratio=job["coreset"])
        extractor = made.model.feature_extractor.feature_extractor
    elif job["method"] == "padim":
        made = models.Padim(**common, layers=layers[1:4], n_features=100)
        extractor = made.model.feature_extractor.feature_extractor
    elif job["method"] == "fastflow":
        made = models.Fastflow(**common)
        extractor = made.model.feature_extractor
    else:
        made = models.Cflow(**common, layers=layers[2:], fiber_batch_size=FIBERS)
        extractor = made.model.encoder.feature_extractor
    missing = extractor.load_state_dict(torch.load(job["weights"]), strict=False).missing_keys
    if missing:
        raise SystemExit(f"{backbone} has no weights for {missing[:3]}")
    return made


def engine(job: Job, **options: Any) -> Any:
    from anomalib.engine import Engine

    return Engine(accelerator="cpu", logger=False, default_root_dir=job["work"], **options)


def fit(job: Job) -> None:
    made = model(job)
    from anomalib.data import Folder

    data = Folder(
        name="parts", root=Path(job["train"]).parent, normal_dir=Path(job["train"]).name,
        normal_test_dir=Path(job["held"]).name, val_split_mode="same_as_test",
        train_batch_size=job["batch"], eval_batch_size=job["batch"], num_workers=job["workers"],
    )  # fmt: skip
    running = engine(job, max_epochs=1)
    running.fit(made, datamodule=data)
    shutil.move(running.trainer.checkpoint_callback.best_model_path, job["model"])


def predict(job: Job) -> None:
    made = model(job)
    from anomalib.data import PredictDataset
    from torch.utils.data import DataLoader

    made.visualizer.output_dir = Path(job["output"])
    data = PredictDataset(job["input"], image_size=SIZE)
    loader = DataLoader(data, batch_size=job["batch"], num_workers=job["workers"], collate_fn=data.collate_fn)
    made.model.fiber_batch_size = 1 << 30  # of CFLOW; larger than all
    found = engine(job).predict(made, dataloaders=loader, ckpt_path=job["model"])
    with Path(job["output"], "scores.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        for batch in found:
            labels = batch.pred_label.tolist()
            rows.writerows(zip(batch.image_path, batch.pred_score.tolist(), labels, strict=True))


def export(job: Job) -> None:
    import torch

    made = model(job)
    made.load_state_dict(torch.load(job["model"], weights_only=False)["state_dict"])
    # One image of a fixed size is what OpenVINO computes fastest, and PatchCore with a free batch takes two only.
    options = {"opset_version": 20, "dynamic_shapes": None}
    made.to_openvino(Path(job["output"]), "model", input_size=SIZE, onnx_kwargs=options)


def one_at_a_time(job: Job) -> None:
    began = time.perf_counter(), time.process_time()
    run = semflow_file(job["model"]) if job["side"] == "semflow" else anomalib_file(job["model"], job["side"])
    paths = sorted(Path(job["input"]).iterdir())[: job["images"]]
    first = bool(run(str(paths[0])))
    loaded = time.perf_counter() - began[0], time.process_time() - began[1]
    times = []
    for path in paths * job["repeat"]:
        wall, cpu = time.perf_counter(), time.process_time()
        run(str(path))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    found = {"loaded_wall": loaded[0], "loaded_cpu": loaded[1], "times": times, "decision": first}
    if job.get("json"):
        Path(job["json"]).write_text(json.dumps(found))


def anomalib_file(path: str, side: str) -> Any:
    import_anomalib()
    from anomalib.deploy import OpenVINOInferencer

    config = {"INFERENCE_PRECISION_HINT": "f32"} if side.endswith("float32") else None
    inferencer = OpenVINOInferencer(path, device="CPU", config=config)

    def run(image: str) -> bool:
        found = inferencer.predict(image)
        return bool(found.pred_label.item())

    return run


def semflow_file(path: str) -> Any:
    import numpy as np
    from PIL import Image

    from semflow.app.export.runtime import open_runner

    runner = open_runner(path)
    size = runner.metadata.image_size
    side = (size, size) if isinstance(size, int) else (size[1], size[0])

    def run(image: str) -> bool:
        with Image.open(image) as file:
            picture = file.convert("RGB")
        pixels = np.asarray(picture if picture.size == side else picture.resize(side, Image.Resampling.BILINEAR))
        return bool(runner(np.ascontiguousarray(pixels.transpose(2, 0, 1))[None])["is_anomalous"][0])

    return run


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose modules have the names of others
    {"fit": fit, "predict": predict, "export": export, "one_at_a_time": one_at_a_time}[sys.argv[1]](
        json.loads(sys.argv[2])
    )
