"""An exported file in a detector's place."""

from pathlib import Path

import torch
from torch import Tensor

from semflow.detectors import Prediction, Provenance

from .check import to_input
from .metadata import Metadata
from .runtime import Runner, open_runner

__all__ = ["ExportedDetector", "load"]


class ExportedDetector:
    """What a detector is to those that score with it, run from an exported file.

    It has `predict`, `provenance`, `map_range`, `localizes`, `false_alarm_rate` and `device` of
    `semflow.detectors.Detector`.

    Args:
        runner: of the file, see `semflow.app.export.open_runner`.

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
    """Where images are expected: a runtime takes them from there to its own device."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    @property
    def metadata(self) -> Metadata:
        """What the file says of itself."""
        return self.runner.metadata

    @property
    def provenance(self) -> Provenance:
        """Recipe, arguments and image size of the detector."""
        said = self.metadata
        return Provenance(said.recipe, arguments=said.arguments, image_size=said.image_size)

    @property
    def map_range(self) -> tuple[float, float]:
        """The colour range for anomaly maps."""
        return self.metadata.map_range

    @property
    def localizes(self) -> bool:
        """Whether the anomaly map says where."""
        return self.metadata.localizes

    @property
    def false_alarm_rate(self) -> float | None:
        """The rate that its decisions are made at; None where it was not calibrated."""
        rate: float | None = self.metadata.calibration.get("false_alarm_rate")
        return rate

    def predict(self, images: Tensor) -> Prediction:
        """As `Detector.predict`.

        Args:
            images: (B, 3, S, S), RGB: float in [0, 1], or uint8.

        Raises:
            ShapeError: the images are of another size; or the file takes uint8, and they have values between those.
        """
        found = {
            name: torch.from_numpy(x) for name, x in self.runner(to_input(images, self.metadata.input).numpy()).items()
        }
        variances = tuple(x for name, x in found.items() if name.startswith("variance_"))
        decided = (found.get(name) for name in ("p_value", "is_anomalous", "mask"))
        return Prediction(found["score"], found["anomaly_map"], variances, *decided)

    def __repr__(self) -> str:
        return f"ExportedDetector({self.metadata.recipe or 'own'}, image_size={self.metadata.image_size})"


def load(path: str | Path, device: str = "cpu") -> ExportedDetector:
    """Open an exported file to predict with; errors as in `semflow.app.export.open_runner`.

    Example:
        >>> load("missing.onnx")
        Traceback (most recent call last):
        ...
        semflow.errors.CheckpointError: missing.onnx: expected an exported model, but there is none; make one with ...
    """
    return ExportedDetector(open_runner(path, device))
