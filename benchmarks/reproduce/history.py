"""Metrics on the test images while a detector is trained, for the column that says "best on test"."""

import time
from typing import Any

from torch.utils.data import Dataset

from semflow import Detector, evaluate
from semflow.training.loading import batches

__all__ = ["History"]


class History:
    """Evaluates a detector at equal distances, as `on_epoch` of `semflow.fit`; training goes on as if it had not.

    Args:
        train: normal images, which the score is calibrated on each time.
        test: labelled images.
        epochs: of the whole training.
        evaluations: in all, the one after the last epoch included.
    """

    def __init__(self, train: Dataset[Any], test: Dataset[Any], epochs: int, evaluations: int) -> None:
        self.train, self.test = train, test
        self.at = {round(epochs * (k + 1) / evaluations) for k in range(evaluations)} - {0, epochs}
        self.records: list[dict[str, Any]] = []
        self.seconds = self.cpu_seconds = 0.0

    def __call__(self, detector: Detector, epoch: int) -> None:
        """Look, if it is time to."""
        if epoch not in self.at:
            return
        began, cpu = time.perf_counter(), time.process_time()
        device = next(detector.flows.parameters()).device
        detector.fit_score(b.images.to(device) for b in batches(self.train, detector.plan.batch_size))
        self.add(epoch, evaluate(detector, self.test))
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu

    def add(self, epoch: int, metrics: dict[str, Any]) -> None:
        """Note the metrics after an epoch."""
        self.records.append({"epoch": epoch, **metrics})

    def best(self) -> dict[str, dict[str, Any]]:
        """The highest value of each metric and its epoch (of equal ones the first)."""
        found = {}
        for name in self.records[0].keys() - {"epoch"}:
            seen = [record for record in self.records if record[name] is not None]
            if seen:
                top = max(seen, key=lambda record: record[name])
                found[name] = {"value": top[name], "epoch": top["epoch"]}
        return found
