"""Laws of what depends on what: locations on themselves, images on themselves."""

from collections.abc import Iterator

import torch

from .case import Case, Finding, noise

__all__ = ["batch", "locality"]


@torch.no_grad()
def locality(case: Case) -> Iterator[Finding]:
    """For event "location": z and log_det at a location depend on x at that location only."""
    if case.event == "location":
        yield from _independence(case, (len(case.x), 1, *case.x.shape[2:]), "at a location must depend on x there only")


@torch.no_grad()
def batch(case: Case) -> Iterator[Finding]:
    """An image has the same result whatever it is batched with, and alone."""
    yield from _independence(case, (len(case.x), 1, 1, 1), "of an image must depend on that image only")
    for at in (case, case.to(torch.float64)):
        z, log_det = at.flow(at.x, at.context)
        for i in range(len(at.x)):
            context = at.context_of(i)
            one_z, one_log_det = at.flow(at.x[i : i + 1], context)
            yield at.equal("z of an image alone must equal that in a batch", one_z, z[i : i + 1])
            yield at.equal("log_det of an image alone must equal that in a batch", one_log_det, log_det[i : i + 1])
            back, one_back = at.flow.inverse(z, at.context)[i : i + 1], at.flow.inverse(z[i : i + 1], context)
            yield at.equal("inverse(z) of an image alone must equal that in a batch", one_back, back)


def _independence(case: Case, shape: tuple[int, ...], claim: str) -> Iterator[Finding]:
    """Change x in random halves: nothing may change in the other halves. Finite, so that no detach hides anything."""
    at, generator = case.to(torch.float64), case.generator()
    z, log_det = at.flow(at.x, at.context)
    for _ in range(4):
        changed = torch.rand(shape, generator=generator) < 0.5
        changed.view(-1)[0], changed.view(-1)[-1] = True, False
        changed = changed.to(at.x.device)
        other_z, other_log_det = at.flow(at.x + changed * noise(at.x, generator), at.context)
        yield at.equal(f"z {claim}", torch.where(changed, z, other_z), z)
        changed = changed[:, 0] if case.event == "location" else changed[:, 0, 0, 0]
        yield at.equal(f"log_det {claim}", torch.where(changed, log_det, other_log_det), log_det)
