"""Tracing of a detector into one graph, from images to results."""

import warnings
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from semflow._validation import height_and_width
from semflow.detectors import Detector

from .metadata import InputType
from .special import ElementaryFunctions


class DetectorGraph(nn.Module):
    """Detector as a function from images to a tuple of tensors.

    Args:
        detector: Trained detector; it is not copied.
        input: Type of the images: `uint8` from 0 to 255, which the graph divides by 255, or `float32` from 0 to 1.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> graph = DetectorGraph(cflow_ad(Backbone("resnet18", "random"), couplings=Couplings(1, 16)).eval())
        >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        >>> dict(zip(graph.outputs, (tuple(x.shape) for x in graph(images))))
        {'score': (2,), 'anomaly_map': (2, 64, 64)}
    """

    def __init__(self, detector: Detector, input: InputType = "uint8") -> None:
        super().__init__()
        self.detector, self.input = detector, input

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the results, including decisions if calibrated and one variance per scale with a head."""
        scales = len(self.detector.flows.events) if self.detector.head is not None else 0
        decisions = ("p_value", "is_anomalous", "mask") if self.detector.calibration.count else ()
        return ("score", "anomaly_map", *decisions, *(f"variance_{scale}" for scale in range(scales)))

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the results of images (B, C, H, W), as `Detector.predict` does."""
        if self.input == "uint8":
            images = images.to(torch.float32) / 255.0
        score, anomaly_map, variances, *decisions = self.detector(images)
        return (score, anomaly_map, *(x for x in decisions if x is not None), *variances)

    def example(self, batch: int = 2) -> Tensor:
        """Return black images of the graph's type and size, all inside if they have a region."""
        made = self.detector.provenance
        dtype = torch.uint8 if self.input == "uint8" else torch.float32
        images = torch.zeros(batch, made.channels, *height_and_width(made.image_size), dtype=dtype)
        images[:, 3:] = 255 if self.input == "uint8" else 1
        return images


def trace(graph: DetectorGraph) -> ExportedProgram:
    """Trace a detector on the CPU and in eval mode with `torch.export`, for any batch size.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4)).eval()
        >>> trace(DetectorGraph(detector, "float32")).module()(torch.rand(3, 3, 32, 32))[0].shape
        torch.Size([3])
    """
    batch = Dim("batch", min=1, max=2**16)
    with torch.no_grad(), ElementaryFunctions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensors that require gradients
        program = torch.export.export(graph, (graph.example(),), dynamic_shapes=({0: batch},), strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    # torch would pickle the example into the file.
    program.example_inputs = cast(tuple[tuple[Tensor, ...], dict[str, Tensor]], None)
    return program
