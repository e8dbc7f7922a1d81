"""Exported file with the interface of a detector."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semflow._tiling import Tiles
from semflow._validation import plain_size
from semflow.detectors import Prediction, Provenance

from .check import to_input
from .runtime import Runner, open_runner, run_image


class ExportedDetector:
    """Exported file with the `semflow.detectors.Predictor` interface of a detector.

    Args:
        runner: Runner of the file, see `semflow.app.export.open_runner`.

    Example:
        >>> import tempfile
        >>> from semflow.app.export import save
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = load(save(detector, f"{folder}/parts.pt2", check=False).path)
        >>> exported.predict(torch.zeros(2, 3, 32, 32)).anomaly_map.shape
        torch.Size([2, 32, 32])
    """

    device = torch.device("cpu")
    """Device of the images; the runtime copies them to its own."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.metadata = runner, runner.metadata
        about = self.metadata
        self.provenance = Provenance(
            about.recipe, arguments=about.arguments, image_size=plain_size(about.image_size),
            resize=about.resize, regions=about.regions,
            calibration="cross" if about.calibration.get("cross") is True else "",
            tiles=Tiles(**about.tiles) if about.tiles else None,
            categories=(str(about.calibration["category"]),) if "category" in about.calibration else (),
        )  # fmt: skip
        self.map_range, self.localizes = about.map_range, about.localizes
        self.false_alarm_rate: float | None = about.calibration.get("false_alarm_rate")
        self.calibration_images = int(about.calibration.get("images", 0))

    def predict(self, images: Tensor) -> Prediction:
        """Predict scores, maps and decisions as `Detector.predict` does; uint8 images are accepted too."""
        if self.metadata.tiles:
            found = self._tiled(images)
        else:
            results = self.runner(to_input(images, self.metadata.input).numpy())
            found = {name: torch.from_numpy(x) for name, x in results.items()}
        variances = tuple(x for name, x in found.items() if name.startswith("variance_"))
        decisions = (found.get(name) for name in ("p_value", "is_anomalous", "mask"))
        return Prediction(found["score"], found["anomaly_map"], variances, *decisions)

    def _tiled(self, images: Tensor) -> dict[str, Tensor]:
        """Return the results of images (B, C, H, W) of any size."""

        def convert(tiles: NDArray[Any]) -> NDArray[Any]:
            converted: NDArray[Any] = to_input(torch.from_numpy(tiles), self.metadata.input).numpy()
            return converted

        found = [run_image(self.runner, image.cpu().numpy(), convert) for image in images]
        return {name: torch.from_numpy(np.stack([one[name] for one in found])) for name in found[0]}

    def __call__(self, images: Tensor) -> Prediction:
        """Predict images, see `predict`."""
        return self.predict(images)

    def __repr__(self) -> str:
        return f"ExportedDetector({self.metadata.recipe or 'own'}, image_size={self.metadata.image_size})"


def load(path: str | Path, device: str = "auto") -> ExportedDetector:
    """Open an exported file, by default for CUDA if the runtime offers it; see `semflow.app.export.open_runner`.

    Example:
        >>> load("missing.onnx")
        Traceback (most recent call last):
        ...
        semflow.errors.CheckpointError: missing.onnx must be an exported model, but got no file; create one with ...
    """
    return ExportedDetector(open_runner(path, device))
