"""SANFlow (Kim, Baik, Kim: SANFlow: Semantic-Aware Normalizing Flow for Anomaly Detection, NeurIPS 2023)."""

from typing import Any

from semflow._validation import Size
from semflow.detectors import Detector, Scorer
from semflow.nn import SinusoidalPosition2d
from semflow.objectives import Objective
from semflow.synthesis import CutPaste, Poisson
from semflow.training import TrainingConfig

from .groups import AnyBackbone, Backbone, Couplings, SemanticStatistics, build_base, build_features
from .registry import recipe


@recipe
def sanflow(
    backbone: AnyBackbone = Backbone("wide_resnet50_2", "hub", (8, 16, 32), smoothing=3),
    image_size: Size = 256,
    couplings: Couplings = Couplings(8, 512, "hard", standardize=True),
    statistics: SemanticStatistics = SemanticStatistics(),
    synthesis: CutPaste | Poisson | None = CutPaste(),
    score_log_det: bool = True,
    top: float = 0.01,
    training: TrainingConfig = TrainingConfig(80, 4, 2e-3, "cosine", mask_resize="max", guard=1),
    seed: int = 0,
) -> Detector:
    """Build SANFlow: a conditional flow per scale, to Gaussians of predicted variance and mean 0 (normal) or 1.

    From the paper: three scales, eight blocks, position code of 512 channels, prior IG(59.5, 6.05), margin 1, weights
    1.0 (BCE) and 0.2 (KL), Adam, 80 epochs.

    Changed: channels are standardized and features pooled over 3x3 locations. The flow starts at the prior's variance.
    The network h runs once, at the finest scale's stride. Masks mark every location that an anomaly touches, and
    training ignores the locations next to these. The score adds the log-det (Eq. 3) and averages the top 1 % of the
    map. The likelihood has its factor C/2. Batches hold 4 images, one of each kind. The learning rate is 2e-3 with
    warm-up and cosine decay (paper: 5e-4, constant).

    Args:
        backbone: timm backbone, its name, or a module of your own.
        image_size: side of the images in pixels, or (height, width).
        couplings: the flows' L blocks, and D channels of the position code.
        statistics: what is predicted, and the weights of the loss.
        synthesis: synthetic anomalies; `poisson` takes `Poisson()`, None trains on normal images alone.
        score_log_det: score the features' log-probability, with the log-det, instead of the latents'.
        top: fraction of the highest pixels of the map that the image score averages.
        training: default settings of `semflow.fit`.
        seed: seed of the initial weights and the permutations.

    Example:
        >>> sanflow(Backbone("resnet18", "random"), couplings=Couplings(2, 16)).objective.kl
        0.2
    """
    features = build_features(backbone, image_size, seed)
    base, head, start = build_base(statistics, features.channels, features.strides, anomalies=synthesis is not None)
    return Detector(
        features,
        couplings.flows(features.channels, start),
        base,
        head,
        SinusoidalPosition2d(couplings.position_channels),
        Objective(bce=statistics.bce, kl=statistics.kl),
        Scorer(len(features.channels), top=top),
        score_log_det=score_log_det,
    )


ABLATIONS: dict[str, dict[str, Any]] = {
    "1a": {"synthesis": None, "statistics.variance": "unit", "statistics.bce": 0.0, "statistics.kl": 0.0},
    "1b": {"statistics.bce": 0.0, "statistics.kl": 0.0},
    "1c": {"statistics.kl": 0.0},
    "1d": {"statistics.bce": 0.0},
    "2a": {"synthesis": None},
    "3a": {"statistics.variance": "fixed"},
    "3b": {"statistics.variance": "fixed", "statistics.predicted_mean": True},
    "3c": {"statistics.predicted_mean": True},
}
"""Settings of `sanflow` for the models of the paper's Tables 4 to 6, used as `build("sanflow", ABLATIONS["1a"])`.

Table 4 varies the loss (1a is CFLOW-AD), Table 5 the synthesis (2a is CFLOW-AD+SP of Table S5), Table 6 the predicted
statistics.
"""
