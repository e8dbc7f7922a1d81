"""How long cells may take: from finished cells of the same row, else from a short probe."""

import time
from collections.abc import Sequence

from . import peers
from .cells import Cell
from .summary import Planned

__all__ = ["estimate"]


def estimate(cells: Sequence[Planned], device: str = "cpu", threads: int | None = None) -> list[float]:
    """Seconds of each cell that is not done, in their order; peers, which are not trained, are left out.

    Finished cells of a row say what an image takes in an epoch and in evaluation; for a row without any, two training
    steps and one prediction are timed on its own data.
    """
    todo = [c for c in cells if c.kept is None and c.cell.recipe not in peers.RECIPES]
    if not todo:
        return []
    rates = {}
    for name in dict.fromkeys(c.row.name for c in todo):
        done = [c.kept["result"] for c in cells if c.row.name == name and c.kept is not None]
        if done:
            rates[name] = (
                sum(r["train_seconds"] for r in done) / sum(r["train_images"] * r["epochs"] for r in done),
                sum(r["evaluate_seconds"] for r in done) / sum(r["test_images"] for r in done),
                done[0]["epochs"],
            )
        else:
            rates[name] = _probe(next(c.cell for c in todo if c.row.name == name), device, threads)
    sizes = {
        data: tuple(len(data.open(split, todo[0].cell.arguments["image_size"])) for split in ("train", "test"))
        for data in dict.fromkeys(c.cell.data for c in todo)
    }
    found = []
    for c in todo:
        rate, score, epochs = rates[c.row.name]
        train, test = sizes[c.cell.data]
        looks = (test + train) * c.cell.evaluations + 3 * train  # standardisation passes over the training images too
        found.append(rate * train * (c.cell.fit.get("epochs") or epochs) + score * looks)
    return found


def _probe(cell: Cell, device: str, threads: int | None) -> tuple[float, float, int]:
    """Seconds of an image in training and in prediction, and the plan's epochs."""
    import torch

    from semflow.data import collate
    from semflow.recipes import build
    from semflow.training.loading import check_device
    from semflow.training.stepping import train_on_batch

    if threads is not None:
        torch.set_num_threads(threads)
    detector = build(cell.recipe, **cell.arguments, seed=cell.seed).to(check_device(device)).train()
    train = cell.data.open("train", cell.arguments["image_size"])
    size = cell.fit.get("batch_size") or detector.plan.batch_size
    images = collate([train[k % len(train)] for k in range(size)]).images.to(next(detector.flows.parameters()).device)
    synthetic = detector.synthesis is not None
    masks = torch.zeros(len(images), *images.shape[2:], device=images.device) if synthetic else None
    maps = None if synthetic else detector.features(images)  # training keeps the maps of unchanged images
    optimizer = torch.optim.Adam(detector.trainable(), 1e-6)

    def step() -> float:
        began = time.perf_counter()
        terms = train_on_batch(detector, optimizer, detector.plan, images, masks, maps)
        float(terms[0])  # waits for the device
        return time.perf_counter() - began

    def look() -> float:
        began = time.perf_counter()
        float(detector.predict(images).score[0])
        return time.perf_counter() - began

    step()  # warms up
    return min(step(), step()) / size, min(look(), look()) / size, detector.plan.epochs
