"""Exported file with the interface of a detector."""

from pathlib import Path

import torch
from torch import Tensor

from semflow.detectors import Prediction, Provenance

from .check import to_input
from .runtime import Runner, open_runner

__all__ = ["ExportedDetector", "load"]


class ExportedDetector:
    """Exported file with the `semflow.detectors.Predictor` interface of a detector.

    Args:
        runner: Runner of the file, see `semflow.app.export.open_runner`.

    Example:
        >>> import tempfile
        >>> from semflow.app.export import open_runner, save
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(detector, f"{folder}/parts.pt2", input="float32", check=False).path
        ...     exported = ExportedDetector(open_runner(path))
        >>> exported.predict(torch.rand(2, 3, 32, 32)).anomaly_map.shape
        torch.Size([2, 32, 32])
    """

    device = torch.device("cpu")
    """Device of the images; the runtime copies them to its own."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.metadata = runner, runner.metadata
        self.provenance = Provenance(
            self.metadata.recipe, arguments=self.metadata.arguments, image_size=self.metadata.image_size
        )
        self.map_range, self.localizes = self.metadata.map_range, self.metadata.localizes
        self.false_alarm_rate: float | None = self.metadata.calibration.get("false_alarm_rate")

    def predict(self, images: Tensor) -> Prediction:
        """Predict scores, maps and decisions as `Detector.predict` does.

        Args:
            images: (B, 3, S, S), RGB, float in [0, 1] or uint8.

        Raises:
            ShapeError: If the images have another size, or values that the file's input type cannot represent.
        """
        found = {
            name: torch.from_numpy(x) for name, x in self.runner(to_input(images, self.metadata.input).numpy()).items()
        }
        variances = tuple(x for name, x in found.items() if name.startswith("variance_"))
        decisions = (found.get(name) for name in ("p_value", "is_anomalous", "mask"))
        return Prediction(found["score"], found["anomaly_map"], variances, *decisions)

    def __repr__(self) -> str:
        return f"ExportedDetector({self.metadata.recipe or 'own'}, image_size={self.metadata.image_size})"


def load(path: str | Path, device: str = "cpu") -> ExportedDetector:
    """Open an exported file; arguments and errors are those of `semflow.app.export.open_runner`.

    Example:
        >>> load("missing.onnx")
        Traceback (most recent call last):
        ...
        semflow.errors.CheckpointError: missing.onnx must be an exported model, but got no file; create one with ...
    """
    return ExportedDetector(open_runner(path, device))
