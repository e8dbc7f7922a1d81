"""Between run directories, folders of the hub's form, and the hub itself, through its ordinary client."""

import copy
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from semflow._version import __version__
from semflow.app.export.metadata import shareable
from semflow.app.report import staged_folder
from semflow.detectors import Detector
from semflow.errors import CheckpointError, ConfigError, DataError
from semflow.recipes import RECIPES
from semflow.recipes import load as load_run
from semflow.training.checkpoint import CONFIG, MODEL, origin, read_config, save_model, write_config

from .card import LIBRARY, METRICS, model_card

__all__ = ["load", "push", "save"]

FILES = (CONFIG, MODEL)
"""What makes a detector: nothing else of a repository is fetched, and no code of it is ever run."""

Metrics = Mapping[str, float | int | None] | str | Path


def save(
    source: Detector | str | Path,
    folder: str | Path,
    name: str | None = None,
    data: str | None = None,
    metrics: Metrics | None = None,
    license: str | None = None,
) -> Path:
    """Write a folder as the hub has it: `config.json`, `model.safetensors` and `README.md`, the model card.

    The folder is also a run directory: `semflow predict --model FOLDER` takes it.

    Args:
        source: a run directory, or a trained detector of a recipe.
        folder: to make; new or empty.
        name: of the model in its card, `owner/name`; by default the folder's.
        data: what it was trained and measured on.
        metrics: of `semflow.evaluate`, or the file that `semflow evaluate --json` has written.
        license: see `model_card`.

    Raises:
        CheckpointError: `source` is no run directory, or broken.
        ConfigError: the detector is not of a recipe, and cannot be built again; or the metrics are none.
        DataError: the folder is not empty.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     made = save(detector, Path(parent) / "screws", data="screws")
        ...     sorted(path.name for path in made.iterdir()), load(made).provenance.recipe
        (['README.md', 'config.json', 'model.safetensors'], 'cflow_ad')
    """
    folder = Path(folder)
    detector, config = _opened(source)
    figures = _figures(metrics)
    public = copy.copy(detector)  # of the same weights; what its arguments say goes into the file of the weights too
    public.provenance = replace(detector.provenance, arguments=config["arguments"], fingerprints=())
    card = model_card(detector, config, name or folder.name, data, figures, license)
    with staged_folder(folder) as staged:
        write_config(staged, {key: value for key, value in config.items() if key != "format"})
        save_model(public, staged)
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
    message: str = "A detector of semflow",
    token: str | None = None,
) -> str:
    """Save and upload; the address of the repository, which is made where there is none.

    Args:
        source, data, metrics, license: of `save`.
        name: `owner/name`.
        private: of a new repository; public is what you say, never what you forget.
        revision: a branch.
        message: of the commit.
        token: by default that of `hf auth login`, or of the environment variable HF_TOKEN.

    Raises:
        ConfigError: the hub did not take it; the message has its reason. And the errors of `save`.

    Example:
        >>> push("runs/screws", "owner/screws", data="screws")  # doctest: +SKIP
        'https://huggingface.co/owner/screws'
    """
    _check_name(name)
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as parent:
        folder = save(source, Path(parent) / "model", name, data, metrics, license)
        api = HfApi(library_name=LIBRARY, library_version=__version__, token=token)
        try:
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, revision=revision)
        except Exception as error:  # the client, its transport and the hub each have their own
            raise ConfigError(
                f"{name}: could not be pushed ({_reason(error)}); check name, token and network"
            ) from error
    return str(address)


def load(
    name: str | Path,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Detector:
    """The detector of a folder, or of a repository on the hub; nothing of it is unpickled or run.

    Args:
        name: a folder that `save` or `semflow fit` has made, or `owner/name`.
        revision: a branch, a tag or a commit; give a commit to be sure that scores stay what they are.
        token, cache_dir, local_files_only: of `huggingface_hub.snapshot_download`.

    Raises:
        CheckpointError: there is no such folder or repository, it could not be fetched, or it is no detector.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     load(save(detector, Path(parent) / "screws")).provenance.recipe
        'cflow_ad'
    """
    if Path(name).is_dir():
        return load_run(name)
    _check_name(str(name), CheckpointError)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            str(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=list(FILES),
            library_name=LIBRARY,
            library_version=__version__,
        )
    except Exception as error:  # the client, its transport and the hub each have their own
        raise CheckpointError(
            f"{name}: no such folder, and it could not be fetched from the hub ({_reason(error)}); check the name"
        ) from error
    return load_run(folder)


def _opened(source: Detector | str | Path) -> tuple[Detector, dict[str, Any]]:
    if isinstance(source, Detector):
        detector, config = source, {"version": __version__, **origin(source)}
        if config.get("recipe") not in RECIPES:
            raise ConfigError(
                f"source must be a detector of {', '.join(RECIPES)}, which can be built again from its arguments, "
                f"but its recipe is {config.get('recipe')!r}"
            )
    else:
        detector, config = load_run(source), read_config(source)
    return detector, {**config, "arguments": shareable(config["arguments"])}


def _figures(metrics: Metrics | None) -> Mapping[str, float | int | None] | None:
    if metrics is None:
        return None
    if isinstance(metrics, str | Path):
        try:
            found = json.loads(Path(metrics).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{metrics}: expected what semflow evaluate --json writes, but: {_reason(error)}"
            ) from error
    else:
        found = metrics
    if not isinstance(found, Mapping) or not set(found) & set(METRICS):
        raise ConfigError(f"metrics must hold one of {', '.join(METRICS)}, but got {found!r:.80}")
    return found


def _check_name(name: str, error: type[CheckpointError] | type[ConfigError] = ConfigError) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise error(f"{name}: expected a folder of a detector, or owner/name on the hub; check the path")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
