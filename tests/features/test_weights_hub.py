"""Weights of the hub without a network: from the caches, or an error within seconds."""

import contextlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from semflow.errors import ConfigError, WeightsError
from semflow.features import TimmFeatures, weights_hub
from semflow.features.timm_module import build, load_timm

LITE0 = "tf_efficientnet_lite0"
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"
constants = pytest.importorskip("huggingface_hub.constants", reason="timm needs it")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give the test empty caches, and fail it if it uses the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def full_state(backbone: str) -> dict[str, Tensor]:
    return {name: x.contiguous() for name, x in build(backbone, seed=3, pretrained=False).state_dict().items()}


def in_hub_cache(folder: Path, backbone: str, name: str) -> Path:
    """Return the place of a file in the cache of huggingface_hub."""
    repository = load_timm().models.get_pretrained_cfg(backbone).hf_hub_id
    home = folder / "hub" / f"models--{repository.replace('/', '--')}"
    for part, content in (("refs/main", "abc"), (f"snapshots/abc/{name}", "")):
        (home / part).parent.mkdir(parents=True, exist_ok=True)
        (home / part).write_text(content, encoding="utf-8")
    return home / "snapshots" / "abc" / name


def in_torch_cache(folder: Path, backbone: str) -> Path:
    url = load_timm().models.get_pretrained_cfg(backbone).url
    path = folder / "torch" / "hub" / "checkpoints" / Path(urlsplit(url).path).name
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "bin", "torch"])
def test_cached_weights_need_no_network(offline: Path, kind: str) -> None:
    state = full_state(LITE0)
    if kind == "safetensors":
        path = in_hub_cache(offline, LITE0, "model.safetensors")
        save_file(state, path)
    else:
        path = in_torch_cache(offline, LITE0) if kind == "torch" else in_hub_cache(offline, LITE0, "pytorch_model.bin")
        torch.save(state, path)
    save_file(state, offline / "own.safetensors")
    image = torch.rand(1, 3, 64, 64)
    given = TimmFeatures(LITE0, offline / "own.safetensors")(image)
    for own, other in zip(TimmFeatures(LITE0, "hub")(image), given, strict=True):
        assert torch.equal(own, other)


def test_cached_weights_in_the_form_of_timm_need_no_loader_of_the_architecture(offline: Path) -> None:
    name = "vit_tiny_patch16_224"  # whose original file is a NumPy archive
    assert load_timm().models.get_pretrained_cfg(name).custom_load
    save_file(full_state(name), in_hub_cache(offline, name, "model.safetensors"))
    assert TimmFeatures(name, "hub", layers=[2]).channels == (192,)


def test_damaged_cached_weights_are_named(offline: Path) -> None:
    path = in_hub_cache(offline, LITE0, "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors must be an intact weight file .*; delete it"):
        TimmFeatures(LITE0, "hub")
    assert path.is_file()


@contextlib.contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """Answer every request with a status on a local port; yield the address and the requests."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join()


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that sets the address of the hub; the caches are empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def use(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + TEMPLATE)
        # Without an answer, timm must not be asked to download.
        monkeypatch.setattr(weights_hub, "build", lambda *_, **__: pytest.fail("timm was called"))

    return use


def test_refused_connections_are_reported(endpoint: Callable[[str], None]) -> None:
    endpoint(address := closed_port())
    with pytest.raises(WeightsError, match=r"wide_resnet50_2.* in the local cache .* got ConnectError") as caught:
        TimmFeatures()
    assert caught.value.url == f"{address}/timm/wide_resnet50_2.racm_in1k/resolve/main/model.safetensors"
    assert caught.value.url in str(caught.value)


def test_a_hub_that_is_down_is_asked_once(endpoint: Callable[[str], None]) -> None:
    with server(503) as (address, asked):
        endpoint(address)
        with pytest.raises(WeightsError, match="but got HTTP status 503"):
            TimmFeatures()
    assert len(asked) == 1


def test_offline_mode_is_respected(endpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200) as (address, asked):
        endpoint(address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(WeightsError, match="but got OfflineModeIsEnabled"):
            TimmFeatures()
    assert not asked


@pytest.mark.parametrize("silent", ["hub", "name server"])
def test_the_wait_for_an_answer_is_bounded(
    endpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setattr(weights_hub, "SECONDS", 0.2)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    done = threading.Event()
    with socket.socket() as listening:  # connects, and never answers
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}")
        if silent == "name server":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(60))
        with pytest.raises(WeightsError, match=r"no answer from 127|Timeout"):
            TimmFeatures()
        done.set()


def test_the_installed_backbone_is_offered(endpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint(closed_port())
    monkeypatch.setattr(weights_hub, "find_spec", lambda name: True if "lite1" in name else None)
    with pytest.raises(WeightsError, match="pass backbone 'tf_efficientnet_lite1' with weights='packaged', which is"):
        TimmFeatures()
    monkeypatch.setattr(weights_hub, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="; pass weights= a file downloaded from http"):
        TimmFeatures()


def test_failed_downloads_are_reported(endpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    with server(200) as (address, _):
        endpoint(address)
        monkeypatch.setattr(weights_hub, "build", failing)
        with pytest.raises(WeightsError, match="available from the hub, but got ConnectionError: no route to host"):
            TimmFeatures()
