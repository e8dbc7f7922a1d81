"""Estimated duration of cells, from finished cells of the same row or from a short probe."""

import time
from collections.abc import Sequence

from .cells import Cell
from .planning import Planned, is_trained


def estimate(cells: Sequence[Planned], device: str = "cpu", threads: int | None = None) -> list[float]:
    """Return the seconds of each missing cell; methods that are not trained are left out.

    Finished cells of a row give the time per image in training and evaluation. For a row without any, two training
    steps and one prediction are timed on its data.
    """
    todo = [(c.row.name, c.cell) for c in cells if c.kept is None and c.cell and is_trained(c.row.recipe)]
    rates, sizes = {}, {}
    for name, cell in todo:
        if name not in rates:
            done = [c.kept["result"] for c in cells if c.row.name == name and c.kept]
            rates[name] = _from_results(done) if done else _probe(cell, device, threads)
        if cell.data not in sizes:
            size = int(cell.arguments["image_size"])
            sizes[cell.data] = [len(cell.data.open(split, size)) for split in ("train", "test")]
    found = []
    for name, cell in todo:
        rate, score, epochs = rates[name]
        train, test = sizes[cell.data]
        looks = (test + train) * cell.evaluations + 3 * train  # standardization reads the training images too
        found.append(rate * train * (cell.fit.get("epochs") or epochs) + score * looks)
    return found


def _from_results(done: Sequence[dict[str, float]]) -> tuple[float, float, int]:
    """Return seconds per image in training and in prediction, and the epochs, of finished cells."""
    return (
        sum(r["train_seconds"] for r in done) / sum(r["train_images"] * r["epochs"] for r in done),
        sum(r["evaluate_seconds"] for r in done) / sum(r["test_images"] for r in done),
        int(done[0]["epochs"]),
    )


def _probe(cell: Cell, device: str, threads: int | None) -> tuple[float, float, int]:
    """Return seconds per image in training and in prediction, and the recipe's epochs, by timing two steps."""
    import torch

    from semflow.data import collate
    from semflow.recipes import build
    from semflow.training.loading import check_device
    from semflow.training.stepping import train_on_batch

    if threads is not None:
        torch.set_num_threads(threads)
    detector = build(cell.recipe, {**cell.arguments, "seed": cell.key.seed}).to(check_device(device)).train()
    training, synthetic = detector.provenance.training, detector.provenance.synthesis is not None
    train = cell.data.open("train", detector.provenance.image_size)
    size = cell.fit.get("batch_size") or training.batch_size
    images = collate([train[k % len(train)] for k in range(size)]).images.to(next(detector.flows.parameters()).device)
    masks = torch.zeros(len(images), *images.shape[2:], device=images.device) if synthetic else None
    maps = None if synthetic else detector.features(images)  # training caches the maps of unchanged images
    optimizer = torch.optim.Adam(detector.trainable(), 1e-6)

    def step() -> float:
        began = time.perf_counter()
        terms = train_on_batch(detector, optimizer, training, images, masks, maps)
        float(terms[0])  # waits for the device
        return time.perf_counter() - began

    def look() -> float:
        began = time.perf_counter()
        float(detector.predict(images).score[0])
        return time.perf_counter() - began

    step()  # warms up
    return min(step(), step()) / size, min(look(), look()) / size, training.epochs
