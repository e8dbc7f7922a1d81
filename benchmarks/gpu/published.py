"""SANFlow in the published formulation, with FrEIA's blocks, and a detector of ours of the same function."""

import torch
from torch import Tensor, nn

from semflow.detectors import Detector
from semflow.flows import FlowSequence, ScaleWise, Standardize
from semflow.functional import to_locations
from semflow.nn import Context, PositionTables

from ..speed.coupling import Setting, make_ours
from ..speed.flows import Freia
from .modes import Score, scoring
from .plan import Plan

GROUP = 256
"""Locations that the published code computes at a time, each group with its own step in training."""


class FreiaFlow(nn.Module):
    """FrEIA's blocks as the flow of a scale, on `group` locations after each other, or on all with None.

    The position code of every location is given to the blocks, as published.
    """

    event = "location"

    def __init__(self, freia: Freia) -> None:
        super().__init__()
        self.freia = freia
        self.group: int | None = None

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        code = context.dense() if isinstance(context, PositionTables) else context  # of drawn locations (D, 1, n)
        assert isinstance(code, Tensor)
        rows, codes = to_locations(x), to_locations(code.expand(batch, -1, -1, -1))
        count = self.group or len(rows)
        found = [self.freia(*pair) for pair in zip(rows.split(count), codes.split(count), strict=True)]
        z, log_det = (torch.cat(parts) for parts in zip(*found, strict=True))
        z = z.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return z, log_det.view(batch, height, width)


def pair(plan: Plan) -> tuple[Detector, Detector]:
    """Return SANFlow with our flows and with FrEIA's, which have the same weights; only the flows differ.

    Our standardization is not fitted, so that it changes nothing; the published form has none.
    """
    ours, theirs = plan.build("sanflow"), plan.build("sanflow")
    sides = [plan.size // stride for stride in ours.features.strides]
    code, blocks = ours.position.channels, 1 if plan.small else 8
    settings = [Setting("", c, side, code) for c, side in zip(ours.features.channels, sides, strict=True)]
    torch.manual_seed(0)
    scales = [Freia(setting, blocks) for setting in settings]
    theirs.flows = ScaleWise([FreiaFlow(scale) for scale in scales])
    ours.flows = ScaleWise(
        [
            FlowSequence([Standardize(s.channels), *(layer for block in scale.blocks for layer in make_ours(s, block))])
            for s, scale in zip(settings, scales, strict=True)
        ]
    )
    return ours.to(plan.device).eval(), theirs.to(plan.device).eval()


def scoring_in_groups(plan: Plan, detector: Detector, group: int | None, bf16: bool) -> Score:
    """Return the scoring of a detector with FrEIA's blocks, `group` locations at a time or all with None."""
    score = scoring(plan, detector, bf16)

    def run(images: Tensor) -> Tensor:
        for flow in detector.flows.modules():
            if isinstance(flow, FreiaFlow):
                flow.group = group
        return score(images)

    return run
