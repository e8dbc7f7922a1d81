"""Export a trained detector to one ONNX file and run it with ONNX Runtime only.

    python examples/export_onnx.py --output results

Needs the extra `export`. The exported graph computes scores from uint8 pixels and needs neither this library nor torch.
To keep the example fast, the detector is small and its backbone has random weights.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from textures import data_folder

import semflow
from semflow.app import export
from semflow.data import load_image, open_dataset
from semflow.recipes import Backbone, Couplings, cflow_ad


def main(data: Path | None, output: Path, epochs: int) -> float:
    """Return the largest difference between the scores of the file and of the detector."""
    import onnxruntime

    output.mkdir(parents=True, exist_ok=True)
    root = data_folder(data, output / "brick")
    detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), image_size=64, couplings=Couplings(2, 16))
    train = open_dataset(root, "train", detector.provenance.image_size, cache=True)
    semflow.fit(detector, train, epochs=epochs, batch_size=16, progress=False)

    test = open_dataset(root, "test", detector.provenance.image_size)
    images = torch.stack([(load_image(path, 64) * 255).round().to(torch.uint8) for path in test.paths[:4]])  # RGB
    exported = export.save(detector, output / "detector.onnx", images=images)

    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    results = dict(zip(names, session.run(None, {session.get_inputs()[0].name: images.numpy()}), strict=True))
    ours = detector.predict(images.float() / 255).score.cpu().numpy()
    difference = float(np.abs(results["score"] - ours).max())
    about = json.loads(session.get_modelmeta().custom_metadata_map["semflow"])
    print(f"{exported.path}: {names}, recipe {about['recipe']}; scores differ by at most {difference:.2g}")
    return difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/export_onnx"))
    parser.add_argument("--epochs", type=int, default=1)
    main(**vars(parser.parse_args()))
