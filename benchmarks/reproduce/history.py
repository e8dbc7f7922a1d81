"""Metrics on the test images during training, for the column "best on test"."""

import time
from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from semflow import Detector, evaluate
from semflow.training import Callback
from semflow.training.loading import batches


class History(Callback):
    """Callback of `semflow.fit` that evaluates a detector at equal intervals, without effect on training.

    Args:
        train: normal images, from which the score is set each time.
        test: labeled images.
        epochs: of the whole training.
        evaluations: number of evaluations, including the one after the last epoch.
        batch_size: of the training images when the score is set.
    """

    def __init__(self, train: Dataset[Any], test: Dataset[Any], epochs: int, evaluations: int, batch_size: int) -> None:
        self.train, self.test, self.batch_size = train, test, batch_size
        self.at = {round(epochs * (k + 1) / evaluations) for k in range(evaluations)} - {0, epochs}
        self.records: list[dict[str, Any]] = []
        self.seconds = self.cpu_seconds = 0.0

    def epoch(self, detector: Detector, record: Mapping[str, Any]) -> None:
        """Evaluate after an epoch, if it is one of the chosen ones."""
        epoch = record["epoch"]
        if epoch not in self.at:
            return
        began, cpu = time.perf_counter(), time.process_time()
        device = next(detector.flows.parameters()).device
        detector.fit_score(b.images.to(device) for b in batches(self.train, self.batch_size))
        self.add(epoch, evaluate(detector, self.test))
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu

    def add(self, epoch: int, metrics: dict[str, Any]) -> None:
        """Record the metrics after an epoch."""
        self.records.append({"epoch": epoch, **metrics})

    def best(self) -> dict[str, dict[str, Any]]:
        """Return the highest value of each metric and the first epoch that reaches it."""
        found = {}
        for name in self.records[0].keys() - {"epoch"}:
            seen = [record for record in self.records if record[name] is not None]
            if seen:
                top = max(seen, key=lambda record: record[name])
                found[name] = {"value": top[name], "epoch": top["epoch"]}
        return found
