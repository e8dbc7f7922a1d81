"""The likelihood model of feature maps: flows, a base with optional statistics, and the training objective."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from semflow._memory import per_batch
from semflow.bases import Base, FittedBase, share_limit
from semflow.errors import ConfigError
from semflow.flows import Event, PyramidFlow, ScaleWise
from semflow.nn import Context, PositionCode, Statistics, VarianceHead, in_eval_mode, switched_to_eval
from semflow.objectives import Objective, Terms, log_likelihood

from .inputs import check_part


class Latents(NamedTuple):
    """Latents of a batch at one scale, with what is needed to compute their likelihood.

    Args:
        z: (B, C, H, W).
        log_det: (B, H, W) if the event is `"location"`, (B,) if it is `"sample"`.
        event: event of the flow.
        statistics: statistics predicted for the base, or None.

    Example:
        >>> import torch
        >>> Latents(torch.randn(2, 8, 4, 4), torch.zeros(2, 4, 4), "location", None).z.shape
        torch.Size([2, 8, 4, 4])
    """

    z: Tensor
    log_det: Tensor
    event: Event
    statistics: Statistics | None


class LikelihoodModel(nn.Module):
    """Flows, base, variance head, position code and objective: everything between feature maps and log-probabilities.

    `semflow.Detector` adds the features, the score and its calibration; `semflow.with_statistics` puts it around flows
    of other libraries.

    Args:
        flows: one per scale, or a `PyramidFlow` of all scales.
        base: distribution of the latents, of all scales or a list with one per scale.
        head: variance head, or None for bases that need no statistics.
        position: position code that all flows receive as their context, or None.
        objective: training loss; by default `Objective()`.

    Example:
        >>> import torch
        >>> from semflow.bases import StandardNormal
        >>> from semflow.flows import AffineCoupling
        >>> model = LikelihoodModel([AffineCoupling(4), AffineCoupling(8)], StandardNormal())
        >>> latents = model.encode_maps([torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)])
        >>> [log_prob.shape for log_prob in model.latent_log_probs(latents)]
        [torch.Size([2, 8, 8]), torch.Size([2, 4, 4])]
    """

    def __init__(
        self,
        flows: Sequence[nn.Module] | PyramidFlow,
        base: Base | Sequence[Base],
        head: VarianceHead | None = None,
        position: PositionCode | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        check_part("head", head, VarianceHead, "wrap a network, InverseGammaVariance(network)")
        check_part("position", position, PositionCode)
        check_part("objective", objective, Objective)
        if isinstance(flows, nn.Module) and not isinstance(flows, PyramidFlow | nn.ModuleList):
            raise ConfigError(f"flows must be a list, one per scale, but got one {type(flows).__name__}; put it in [ ]")
        for flow in flows if isinstance(flows, Sequence | nn.ModuleList) else ():
            check_part("flows", flow, nn.Module)
        self.flows = flows if isinstance(flows, PyramidFlow) else ScaleWise(flows)
        self.base: nn.Module
        self.set_base(base)
        self.head, self.position = head, position
        self.objective = objective or Objective()

    def set_base(self, base: Base | Sequence[Base]) -> None:
        """Replace the base, by one of all scales or a list with one per scale."""
        scales = len(self.flows.events)
        for one in base if isinstance(base, Sequence | nn.ModuleList) else [base]:
            check_part("base", one, Base, required=True)
        if isinstance(base, FittedBase) and scales > 1:
            kind = type(base).__name__
            raise ConfigError(f"base must be a list of {scales} if it is fitted, one per scale, but got one {kind}")
        if not isinstance(base, Base) and len(base) != scales:
            raise ConfigError(f"base must be one for all scales or {scales}, one per scale, but got {len(base)}")
        self.base = base if isinstance(base, Base) else nn.ModuleList(base)

    @property
    def bases(self) -> list[Base]:
        """The base of each scale."""
        one = self.base
        return cast(list[Base], list(one) if isinstance(one, nn.ModuleList) else [one] * len(self.flows.events))

    @property
    def fitted_bases(self) -> dict[int, FittedBase]:
        """The bases that are fitted after training, by scale."""
        return {k: base for k, base in enumerate(self.bases) if isinstance(base, FittedBase)}

    def training_base(self, scale: int) -> Base:
        """Return the base that a scale is trained under: its own, or the prior of one that is fitted afterwards."""
        base = self.bases[scale]
        return base.prior if isinstance(base, FittedBase) else base

    def statistics(self, images: Tensor | None, maps: Sequence[Tensor]) -> Sequence[Statistics | None]:
        """Predict the statistics of the base at each scale, all None if there is no head."""
        return self.head(images, maps) if self.head is not None else [None] * len(maps)

    def context(self, x: Tensor) -> Context:
        """Return the position code of a feature map (B, C, H, W), or None if there is none."""
        return self.position(x.shape[2], x.shape[3]) if self.position is not None else None

    def encode_maps(
        self,
        maps: Sequence[Tensor],
        images: Tensor | None = None,
        contexts: Sequence[Context] | None = None,
        statistics: Sequence[Statistics | None] | None = None,
    ) -> list[Latents]:
        """Map features to latents and predict their statistics.

        Args:
            maps: feature maps (B, C_k, H_k, W_k), one per scale.
            images: (B, 3, H, W) in [0, 1]; needed if the head predicts from images.
            contexts: one per scale; by default the position code.
            statistics: one per scale; by default those that the head predicts.
        """
        if contexts is None:
            contexts = [self.context(x) for x in maps]
        latents, log_dets = self.flows(maps, contexts)
        if statistics is None:
            statistics = self.statistics(images, maps)
        return [Latents(*scale) for scale in zip(latents, log_dets, self.flows.events, statistics, strict=True)]

    def latent_loss(
        self,
        latents: Sequence[Latents],
        masks: Sequence[Tensor | None] | None = None,
        ignored: Sequence[Tensor | None] | None = None,
    ) -> Terms:
        """Compute the objective over all scales.

        Scales with their own flows are summed. For a joint flow, this is the mean weighted by the dimensions of the
        scales: the terms per dimension of one distribution.

        Args:
            latents: from `encode_maps`.
            masks: (B, H_k, W_k) per scale, 1 where anomalous; None means that all locations are normal.
            ignored: (B, H_k, W_k) per scale, 1 where a location is left out; None leaves out none.
        """
        none = [None] * len(latents)
        terms, dimensions = [], []
        scales = zip(latents, masks or none, ignored or none, strict=True)
        for scale, ((z, log_det, event, statistics), mask, ignore) in enumerate(scales):
            base = self.training_base(scale)
            terms.append(self.objective(z, log_det, event, base, statistics, mask, ignore))
            dimensions.append(z.shape[1:].numel())
        weights = [d / sum(dimensions) if self.flows.joint else 1.0 for d in dimensions]
        return Terms(*(sum(w * t for w, t in zip(weights, parts, strict=True)) for parts in zip(*terms, strict=True)))

    def latent_log_probs(
        self, latents: Sequence[Latents], log_det: bool = False, leave_out: Tensor | None = None
    ) -> list[Tensor]:
        """Compute the normality of every location, log p(z_k) / C_k for densities, one map (B, H_k, W_k) per scale.

        Args:
            latents: from `encode_maps`.
            log_det: add the log-det of densities where the event is `"location"`, which gives log p of the features.
            leave_out: see `Base.normality`.
        """
        log_probs = []
        for base, (z, volume, event, statistics) in zip(self.bases, latents, strict=True):
            normality = base.normality(z, statistics, leave_out)
            if log_det and event == "location" and base.is_density:
                normality = log_likelihood(normality, volume / z.shape[1], event)
            log_probs.append(normality)
        return log_probs

    @per_batch
    @torch.no_grad()
    def latents_to_fit(
        self,
        maps: Sequence[Tensor],
        contexts: Sequence[Context] | None = None,
        inside: Sequence[Tensor | None] | None = None,
        known: Sequence[Latents] | None = None,
    ) -> dict[int, dict[str, Tensor]]:
        """Compute what the accumulator of each fitted base takes by name, on the CPU; see `encode_maps`.

        `inside` are the locations (B, H_k, W_k) of each scale in the region of interest, None for all, and `known` the
        latents, if they are known.
        """
        if known is None:
            latents, _ = self.flows(maps, [self.context(x) for x in maps] if contexts is None else contexts)
        else:
            latents = [scale.z for scale in known]
        found: dict[int, dict[str, Tensor]] = {}
        for k, base in self.fitted_bases.items():
            given = {"z": latents[k], "features": maps[k] if base.uses_features else None}
            given["inside"] = None if inside is None else inside[k]
            found[k] = {name: x.cpu() for name, x in given.items() if x is not None}
        return found

    @torch.no_grad()
    def fit_latents(self, batches: Iterable[Mapping[int, Mapping[str, Tensor]]], images: Tensor | None = None) -> None:
        """Fit the bases to the results of `latents_to_fit` for batches of normal images, or of tiles of `images`."""
        fitted = self.fitted_bases
        accumulators = {k: base.accumulator() for k, base in fitted.items()}
        for number, batch in enumerate(batches):
            if number == 0:
                share_limit(accumulators, batch)
            for k, accumulator in accumulators.items():
                given = dict(batch[k])
                if "inside" in given and "inside" not in inspect.signature(accumulator.update).parameters:
                    kind = type(accumulator).__name__
                    raise ConfigError(f"{kind}.update must take inside for images with a region, but got one without")
                device = next(iter(fitted[k].buffers()), given["z"]).device
                z, *features = (given.pop(name).to(device) for name in ("z", "features") if name in given)
                accumulator.update(z, *features, **{name: x.to(device) for name, x in given.items()})
        for k, base in fitted.items():
            relabel = getattr(accumulators[k], "relabel", None)
            if images is not None and relabel is not None:
                relabel(images)
            base.fit(accumulators.pop(k))

    def reading(self) -> AbstractContextManager[Self]:
        """Yield this model in eval mode, or a copy in eval mode with the same tensors, see `in_eval_mode`."""
        return in_eval_mode(self)

    def evaluating(self) -> AbstractContextManager[None]:
        """Switch every submodule to eval mode to fit the model, and restore each one's own mode afterwards."""
        return switched_to_eval(self)
