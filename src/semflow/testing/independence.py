"""Laws of what depends on what: locations on themselves, images on themselves."""

from collections.abc import Iterator

import torch

from .case import Case, Finding, noise

__all__ = ["batch", "locality"]


@torch.no_grad()
def locality(case: Case) -> Iterator[Finding]:
    """For event "location": z and log_det at a location depend on x at that location only."""
    if case.event != "location":
        return
    at, generator = case.to(torch.float64), case.generator()
    z, log_det = at.flow(at.x, at.context)
    # Change x in random halves: nothing may change in the others. Finite changes, so that no detach hides anything.
    for _ in range(4):
        changed = torch.rand(log_det.shape, generator=generator) < 0.5
        changed.view(-1)[0], changed.view(-1)[-1] = True, False
        changed = changed.to(at.x.device)
        other_z, other_log_det = at.flow(at.x + changed[:, None] * noise(at.x, generator), at.context)
        same_z, same_log_det = torch.where(changed[:, None], z, other_z), torch.where(changed, log_det, other_log_det)
        yield at.equal("z at a location must depend on x there only", same_z, z)
        yield at.equal("log_det at a location must depend on x there only", same_log_det, log_det)


@torch.no_grad()
def batch(case: Case) -> Iterator[Finding]:
    """An image has the same result whatever it is batched with, and alone."""
    for at in (case, case.to(torch.float64)):
        z, log_det = at.flow(at.x, at.context)
        x = at.flow.inverse(z, at.context)
        for i in range(len(at.x)):
            one, context = slice(i, i + 1), at.context_of(i)
            one_z, one_log_det = at.flow(at.x[one], context)
            yield at.equal("z of an image alone must equal that in a batch", one_z, z[one])
            yield at.equal("log_det of an image alone must equal that in a batch", one_log_det, log_det[one])
            one_x = at.flow.inverse(z[one], context)
            yield at.equal("inverse(z) of an image alone must equal that in a batch", one_x, x[one])
