"""Pretrained weights of timm from the caches of this machine, or from a hub that answers within seconds."""

import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from torch import nn

from semflow._optional import import_optional
from semflow.errors import ConfigError, WeightsError

from .timm_module import build, load_timm, one_line
from .weights import PACKAGED

SECONDS = 3.0
"""Time for the hub to answer, unless the environment variable HF_HUB_ETAG_TIMEOUT sets another."""


def load_from_hub(backbone: str, options: dict[str, Any]) -> nn.Module:
    """Build a pretrained network from the local caches of huggingface_hub and torch, or from a download.

    The hub is asked once whether it answers before timm downloads, whose retries take a minute without a network.
    """
    if not load_timm().models.is_model_pretrained(backbone):
        raise ConfigError(
            f"backbone must have pretrained weights in timm, but got {backbone!r} without any; pass weights= a "
            ".safetensors or .pth file, or 'random'"
        )
    config = load_timm().models.get_pretrained_cfg(backbone)
    cached = _cached(config)
    if cached is not None:
        try:
            # Files on the hub are in timm's form; only those of `url` may need a loader of the architecture.
            overlay: dict[str, Any] = {"file": str(cached)}
            if not cached.is_relative_to(torch.hub.get_dir()):
                overlay["custom_load"] = False
            return cast(nn.Module, build(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options))
        except Exception as error:  # torch, safetensors and pickle raise errors of any class
            raise ConfigError(
                f"{cached} must be an intact weight file of {backbone!r}, but got {type(error).__name__}: "
                f"{one_line(error)}; delete it, so that it is downloaded again"
            ) from error
    url = _url(config)
    reason = _no_answer(url)
    if reason:
        raise _unavailable(backbone, url, reason)
    try:
        return cast(nn.Module, build(backbone, pretrained=True, **options))
    except Exception as error:  # the client of the hub, its transport and the file system raise errors of any class
        raise _unavailable(backbone, url, f"{type(error).__name__}: {one_line(error)}") from error


def installed_backbone() -> str | None:
    """Return the smallest backbone whose weights are in an installed package, or None.

    Example:
        >>> installed_backbone() in (*PACKAGED, None)
        True
    """
    return next((name for name, package in PACKAGED.items() if find_spec(package.replace("-", "_"))), None)


def _unavailable(backbone: str, url: str, reason: str) -> WeightsError:
    installed = installed_backbone()
    own = f"pass backbone {installed!r} with weights='packaged', which is installed, or " if installed else ""
    return WeightsError(
        f"weights of {backbone!r} must be in the local cache or available from the hub, but got {reason}",
        f"{own or 'pass '}weights= a file downloaded from {url} elsewhere",
        url,
    )


def _place(config: Any) -> tuple[str, str | None, tuple[str, ...]]:
    """Return repository, revision and file names on the hub, the preferred one first; no repository for plain URLs."""
    repository, _, revision = str(config.hf_hub_id or "").partition("@")
    name = str(config.hf_hub_filename or "pytorch_model.bin")
    safe = name.replace("pytorch_model.bin", "model.bin").removesuffix(".bin") + ".safetensors"
    return repository, revision or None, (safe, name) if name.endswith(".bin") else (name,)


def _cached(config: Any) -> Path | None:
    """Return the weight file in a local cache, or None."""
    repository, revision, names = _place(config)
    if repository:
        client = import_optional("huggingface_hub")
        for name in names:
            found = client.try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(found, str) and Path(found).is_file():
                return Path(found)
    if config.url:
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(config.url).path).name
        return path if path.is_file() else None
    return None


def _url(config: Any) -> str:
    repository, revision, names = _place(config)
    if not repository:
        return str(config.url)
    return str(import_optional("huggingface_hub").hf_hub_url(repository, names[0], revision=revision))


def _no_answer(url: str) -> str:
    """Return why a server does not answer, or "" if it does.

    It is asked by a thread, since no timeout bounds the search for a name server.
    """
    given = os.environ.get("HF_HUB_ETAG_TIMEOUT", "")
    seconds = float(given) if given.isdecimal() and int(given) else SECONDS
    found: list[str] = []

    def ask() -> None:
        try:
            session = import_optional("huggingface_hub.utils").get_session()  # with the proxies of the environment
            status = session.head(url, timeout=seconds).status_code
            found.append(f"HTTP status {status}" if status >= 500 else "")
        except Exception as error:  # of any class, as above
            found.append(f"{type(error).__name__}: {one_line(error)}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no answer from {urlsplit(url).netloc} within {seconds:g} s"
