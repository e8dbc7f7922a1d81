"""A memory of normal latents for flows that a user already has."""

import copy
from collections.abc import Sequence
from typing import Any

from semflow._validation import checked
from semflow.bases import FittedBase, Memory
from semflow.detectors.inputs import check_part

from .statistics import FlowWithStatistics, with_statistics


@checked
def with_memory(
    flow: Any, memory: FittedBase | Sequence[FittedBase] | None = None, log_det: bool = True
) -> FlowWithStatistics:
    """Put a memory of normal latents in the place of an existing flow's base.

    The flow is not changed. `remember` fits the memory in one pass over features of normal images; nothing is trained.

    Args:
        flow: as in `with_statistics`, or one of its models. Such a model keeps its head, gets the memory in the place
            of its base, and is returned; its loss stays what it was.
        memory: base that is fitted, of which each scale gets a copy, or a list with one per scale; by default 8000
            latents per scale, `Memory(size=8000, space="features")`.
        log_det: the anomaly map adds the log-det of flows of event `"location"`, which makes it that of the features.

    Example:
        >>> import torch
        >>> from semflow.flows import AffineCoupling
        >>> normal, features = torch.randn(20, 40, 8, 8), torch.randn(2, 40, 8, 8)
        >>> model = with_memory(AffineCoupling(40), Memory(size=100))
        >>> model.remember([normal])
        >>> model.anomaly_map(features).shape
        torch.Size([2, 8, 8])
    """
    known = isinstance(flow, FlowWithStatistics)
    model: FlowWithStatistics = flow if known else with_statistics(flow, None)
    scales = len(model.flows.events)
    memory = Memory(size=8000, space="features") if memory is None else memory
    for one in memory if isinstance(memory, Sequence) else [memory]:
        check_part("memory", one, FittedBase, "use Memory()", required=True)
    bases = [copy.deepcopy(memory) for _ in range(scales)] if isinstance(memory, FittedBase) else list(memory)
    priors = [model.training_base(scale) for scale in range(scales)]
    model.set_base(bases)
    for base, prior in zip(bases, priors, strict=True):
        base.prior = prior if known else base.prior
    model.score_log_det = log_det and "sample" not in model.flows.events
    return model
