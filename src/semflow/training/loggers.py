"""Training curves in TensorBoard, MLflow and Weights & Biases, through their own clients."""

import json
import numbers
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semflow._optional import import_optional
from semflow.detectors import Detector
from semflow.errors import ConfigError
from semflow.files import replace_file

from .callbacks import Callback, RunStart

STATE = "loggers.json"
TERMS = ("loss", "nll", "bce", "kl", "learning_rate", "largest_gradient", "seconds")


class Logger(Callback):
    """Base class of loggers: which epochs are logged, in process 0 only, and each of them once.

    `loggers.json` in the run directory keeps the run of the client and its last epoch. A resumed run continues the same
    curves, without the epochs that it repeats; a run that was not logged before gets the epochs of its `log.jsonl`.

    Example:
        >>> class Printer(Logger):
        ...     name = "printer"
        ...     def open(self, start, known):
        ...         return "1"
        ...     def write(self, epoch, values):
        ...         print(epoch, values)
        ...     def finish(self, settings, summary):
        ...         print(summary)
        >>> printer = Printer()
        >>> printer.begin(None, RunStart(None, {}, [{"epoch": 1, "loss": 2.0, "steps": 8, "clipped": 2}]))
        1 {'loss': 2.0, 'clipped_share': 0.25}
    """

    name = ""

    def __init__(self) -> None:
        self.done = False
        self._start: RunStart | None = None  # also while nothing is to be logged
        self._state: dict[str, Any] = {}

    @abstractmethod
    def open(self, start: RunStart, known: str | None) -> str:
        """Open a run of the client and return its identity, which is `known` if that run is continued."""

    @abstractmethod
    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log the values of an epoch."""

    @abstractmethod
    def finish(self, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Log settings and results, by dotted name."""

    def begin(self, detector: Detector, start: RunStart) -> None:
        """Open the run, and log the epochs that it lacks."""
        if start.rank:
            return
        self.done, self._start = False, start
        known = self._read().get(self.name, {})
        with self._reported("start a run"):
            run = self.open(start, known.get("run"))
        self._state = known if run == known.get("run") else {"run": run, "epoch": 0}
        self._keep()
        for record in start.records:
            self.epoch(detector, record)

    def epoch(self, detector: Detector, record: Mapping[str, Any]) -> None:
        """Log a record, unless its epoch has been logged."""
        if self._start is None or record["epoch"] <= self._state["epoch"]:
            return
        values = {name: float(record[name]) for name in TERMS if name in record}
        if record.get("steps"):
            values["clipped_share"] = record["clipped"] / record["steps"]
        with self._reported(f"take the values of epoch {record['epoch']}"):
            self.write(record["epoch"], values)
        self._state["epoch"] = record["epoch"]
        self._keep()

    def end(self, detector: Detector, summary: Mapping[str, Any]) -> None:
        """Log settings and summary, unless they have been logged."""
        if self._start is None:
            return
        flat = _flat(summary)
        if self._state.get("summary") != flat:
            with self._reported("take the summary"):
                self.finish(self._start.settings, flat)
            self._state["summary"] = flat
            self._keep()
        self.done = True

    def close(self) -> None:
        """Forget the run."""
        self._start = None

    @contextmanager
    def _reported(self, task: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any class: each client has its own
            raise ConfigError(f"{self.name} must {task}, but got {type(error).__name__}: {error}") from error

    def _read(self) -> dict[str, Any]:
        path = self._path()
        if path is None or not path.exists():
            return {}
        try:
            found = json.loads(path.read_bytes())
            return {name: state for name, state in found.items() if {"run", "epoch"} <= state.keys()}
        except (ValueError, AttributeError):  # edited by hand
            return {}

    def _keep(self) -> None:
        path = self._path()
        if path is not None:
            text = json.dumps({**self._read(), self.name: self._state}, indent=2) + "\n"
            replace_file(path, lambda place: place.write_text(text, encoding="utf-8"))

    def _path(self) -> Path | None:
        folder = self._start and self._start.folder
        return folder / STATE if folder else None


class TensorBoard(Logger):
    """Logger that writes event files of TensorBoard (extra `tensorboard`).

    Args:
        folder: folder of the event files; by default `tensorboard` in the run directory, or without one a folder in
            `runs`, as `torch.utils.tensorboard` chooses it.

    Example:
        >>> from semflow import fit
        >>> def train(detector, good):
        ...     return fit(detector, good, output="runs/part", callbacks=[TensorBoard()])
    """

    name = "tensorboard"

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__()
        import_optional("tensorboard")
        self._writers: Any = import_optional("torch.utils.tensorboard").SummaryWriter
        self.folder = folder
        self._writer: Any = None

    def open(self, start: RunStart, known: str | None) -> str:
        """Open an event file; the first one of the folder is the identity."""
        folder = self.folder if self.folder is not None or start.folder is None else start.folder / "tensorboard"
        self._writer = self._writers(folder and str(folder))
        return min(path.name for path in Path(self._writer.log_dir).glob("events.out.tfevents.*"))

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write scalars, which are on the disk afterwards."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Write the line of the table of hyperparameters, into the same folder."""
        known = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
        self._writer.add_hparams(known, _numbers(summary), run_name=".", global_step=self._state["epoch"])

    def close(self) -> None:
        """Close the event file."""
        super().close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflow(Logger):
    """Logger that writes a run of MLflow (extra `mlflow`), to the server and experiment of its environment variables.

    These are `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`. The run is active during training, and is nested in
    one that is active before.

    Example:
        >>> from semflow import fit
        >>> def train(detector, good):
        ...     return fit(detector, good, output="runs/part", callbacks=[MLflow()])
    """

    name = "mlflow"

    def __init__(self) -> None:
        super().__init__()
        self._client: Any = import_optional("mlflow")
        self._run: str | None = None

    def open(self, start: RunStart, known: str | None) -> str:
        """Start or continue a run; settings are its parameters."""
        client, name = self._client, start.folder and start.folder.name
        if known is not None:
            try:
                self._run = client.start_run(run_id=known, nested=True).info.run_id
                return known
            except client.exceptions.MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # deleted, or of another server
                    raise
        self._run = client.start_run(run_name=name, nested=client.active_run() is not None).info.run_id
        client.log_params(dict(start.settings))
        return str(self._run)

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log metrics."""
        self._client.log_metrics(dict(values), step=epoch, run_id=self._run)

    def finish(self, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Log the numbers of the summary as metrics."""
        self._client.log_metrics(_numbers(summary), run_id=self._run)

    def close(self) -> None:
        """End the run, which has failed unless it was finished."""
        super().close()
        if self._run is not None:
            self._run = None
            self._client.end_run("FINISHED" if self.done else "FAILED")


class WandB(Logger):
    """Logger that writes a run of Weights & Biases (extra `wandb`); `WANDB_MODE=offline` needs no account.

    Args:
        options: arguments of `wandb.init`, such as `project`.

    Example:
        >>> from semflow import fit
        >>> def train(detector, good):
        ...     return fit(detector, good, output="runs/part", callbacks=[WandB(project="parts")])
    """

    name = "wandb"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._client: Any = import_optional("wandb")
        self.options = options
        self._run: Any = None

    def open(self, start: RunStart, known: str | None) -> str:
        """Start a run, or continue one by its id; settings are its configuration."""
        own = {"config": dict(start.settings), "reinit": "create_new", **({"id": known} if known else {})}
        if start.folder is not None:
            own["name"] = start.folder.name
        self._run = self._client.init(**{**own, "resume": "allow", **self.options})
        return str(self._run.id)

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log a row."""
        self._run.log(dict(values), step=epoch)

    def finish(self, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        self._run.summary.update(dict(summary))

    def close(self) -> None:
        """End the run, which has crashed unless it was finished."""
        super().close()
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=0 if self.done else 1)


LOGGERS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return {name: value for name, value in found.items() if value is not None}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, numbers.Real)}
