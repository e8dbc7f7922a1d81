"""Transfer of detectors to and from the Hugging Face Hub, through its client."""

import copy
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from semflow import recipes
from semflow._optional import import_optional
from semflow._version import __version__
from semflow.app.export.metadata import shareable
from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError, DataError
from semflow.files import staged_folder
from semflow.training.checkpoint import CONFIG, MODEL, read_config, write_config

from .card import LIBRARY, METRICS, model_card

MESSAGE = "Add a detector of semflow"
Metrics = Mapping[str, float | int | None] | str | Path


def prepare(
    source: Detector | str | Path,
    folder: str | Path,
    name: str | None = None,
    data: str | None = None,
    metrics: Metrics | None = None,
    license: str | None = None,
) -> Path:
    """Write the folder that `push` uploads: `config.json`, `model.safetensors` and `README.md`. Return its path.

    `semflow.load` and `semflow predict --model FOLDER` accept the folder. It contains neither the paths of this machine
    nor the fingerprints of the training images.

    Args:
        source: Run directory, or trained detector that a recipe built.
        folder: New or empty folder.
        name: Name of the model in its card, `owner/name`; by default, that of the folder.
        data: Description of the data for training and evaluation.
        metrics: Result of `semflow.evaluate`, or the file that `semflow evaluate --json` wrote.
        license: License in the header, see `model_card`.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     made = prepare(detector, Path(parent) / "screws", data="screws")
        ...     sorted(path.name for path in made.iterdir()), pull(made).provenance.recipe
        (['README.md', 'config.json', 'model.safetensors'], 'cflow_ad')
    """
    folder = Path(folder)
    detector = source if isinstance(source, Detector) else recipes.load(source)
    config: dict[str, Any] = {} if isinstance(source, Detector) else read_config(source)
    public = copy.copy(detector)
    arguments = shareable(detector.provenance.arguments)
    public.provenance = replace(detector.provenance, arguments=arguments, fingerprints=(), calibration="")
    version = str(config.get("version", __version__))
    card = model_card(public, name or folder.name, data, _figures(metrics), license, version)
    with staged_folder(folder) as staged:
        if config:  # with the record of its training
            write_config(staged, {**config, "arguments": arguments})
        recipes.save(public, staged)
        (staged / "README.md").write_text(card, encoding="utf-8")
    return folder


def push(
    source: Detector | str | Path,
    name: str,
    data: str | None = None,
    metrics: Metrics | None = None,
    license: str | None = None,
    private: bool = True,
    revision: str | None = None,
    message: str = MESSAGE,
    token: str | None = None,
) -> str:
    """Upload a detector with its model card, and return the address of the repository, created if it does not exist.

    `source`, `data`, `metrics` and `license` are those of `prepare`, and `name` is `owner/name`. A new repository is
    private if `private` is true. `revision` is a branch. Without `token`, that of `hf auth login` or of the environment
    variable HF_TOKEN is used.

    Example:
        >>> push("runs/screws", "owner/screws", data="screws")  # doctest: +SKIP
        'https://huggingface.co/owner/screws'
    """
    _check_name(name, ConfigError)
    client = import_optional("huggingface_hub")
    with tempfile.TemporaryDirectory() as parent:
        folder = prepare(source, Path(parent) / "model", name, data, metrics, license)
        api = client.HfApi(library_name=LIBRARY, library_version=__version__, token=token)
        try:
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, revision=revision)
        except Exception as error:  # the client and its transport raise many types
            raise ConfigError(
                f"{name} must accept the upload, but got {_reason(error)}; check name, token and network"
            ) from error
    return str(address)


def pull(
    name: str | Path,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Detector:
    """Download a detector, or load it from a folder; nothing is unpickled, and no code of the repository runs.

    `name` is a repository, `owner/name`, or a folder of `prepare`, `semflow.save` or `semflow fit`. `revision` is a
    branch, tag or commit; only a commit guarantees that scores never change. The others are arguments of
    `huggingface_hub.snapshot_download`.

    Example:
        >>> pull("owner/screws", revision="1f0c1f7").provenance.recipe  # doctest: +SKIP
        'sanflow'
    """
    if Path(name).is_dir():
        return recipes.load(name)
    _check_name(str(name), CheckpointError)
    client = import_optional("huggingface_hub")
    try:
        folder = client.snapshot_download(
            str(name), revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
            allow_patterns=[CONFIG, MODEL], library_name=LIBRARY, library_version=__version__,
        )  # fmt: skip
    except Exception as error:  # the client and its transport raise many types
        raise CheckpointError(
            f"{name} must be a folder or a repository of the hub, but got {_reason(error)}; check the name"
        ) from error
    return recipes.load(folder)


def _figures(metrics: Metrics | None) -> Mapping[str, float | int | None] | None:
    found: object = metrics
    if isinstance(metrics, str | Path):
        try:
            found = json.loads(Path(metrics).read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{metrics} must be a file of semflow evaluate --json, but got {_reason(error)}") from error
    if isinstance(found, Mapping) and set(found) & set(METRICS):
        return found
    if metrics is not None:
        raise ConfigError(f"metrics must have one of {', '.join(METRICS)}, but got {found!r:.80}")
    return None


def _check_name(name: str, error: type[CheckpointError] | type[ConfigError]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise error(f"name must be a folder or owner/name on the hub, but got {name}; check the path")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
