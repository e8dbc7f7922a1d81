"""Clients of MLflow, Weights & Biases and TensorBoard that keep in memory what they are given."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace


class MlflowError(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


class FakeMLflow:
    exceptions = SimpleNamespace(MlflowException=MlflowError)

    def __init__(self) -> None:
        self.runs, self.active = {}, []

    def start_run(self, run_id=None, run_name=None, nested=False):
        if self.active and not nested:
            raise RuntimeError("a run is active already")
        if run_id is not None and run_id not in self.runs:
            raise MlflowError(run_id)
        run_id = run_id or f"run {len(self.runs)}"
        run = self.runs.setdefault(run_id, SimpleNamespace(name=run_name, params={}, curves=defaultdict(list)))
        run.status = "RUNNING"
        self.active.append(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def active_run(self):
        return self.active[-1] if self.active else None

    def log_params(self, params) -> None:
        own = self.runs[self.active[-1]].params
        assert all(own.get(name, value) == value for name, value in params.items()), "parameters cannot change"
        own.update(params)

    def log_metrics(self, metrics, step=0, run_id=None) -> None:
        for name, value in metrics.items():
            self.runs[run_id].curves[name].append((step, value))

    def end_run(self, status) -> None:
        self.runs[self.active.pop()].status = status


class FakeWandB:
    def __init__(self) -> None:
        self.runs, self.options = {}, []

    def init(self, id=None, **options):
        self.options.append(options)
        run = self.runs.setdefault(id or f"id{len(self.runs)}", SimpleNamespace(rows=[], summary={}))
        run.id, run.exit_code = id or f"id{len(self.runs) - 1}", None
        run.log = lambda values, step: run.rows.append((step, values))
        run.finish = lambda exit_code: setattr(run, "exit_code", exit_code)
        return run


class FakeWriter:
    """Stands for `torch.utils.tensorboard.SummaryWriter`; the lines of its file are events."""

    def __init__(self, folder) -> None:
        self.log_dir = folder
        Path(folder).mkdir(parents=True, exist_ok=True)
        number = len(list(Path(folder).iterdir()))
        self.path = Path(folder) / f"events.out.tfevents.{number}"
        self.path.touch()

    def add_scalar(self, name, value, step) -> None:
        with self.path.open("a") as file:
            file.write(f"{step} {name} {value!r}\n")

    def flush(self) -> None:
        pass

    def add_hparams(self, settings, metrics, run_name, global_step) -> None:
        assert run_name == "."
        with self.path.open("a") as file:
            file.write(f"hparams {global_step} {len(settings)} {len(metrics)}\n")

    def close(self) -> None:
        pass
