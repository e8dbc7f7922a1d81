"""Folders for the hub, the model card, and the hub's client with a replaced network."""

import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import huggingface_hub
import pytest
import torch
import yaml

from semflow.app import hub
from semflow.app.hub import card, transfer
from semflow.data import Sample
from semflow.detectors import Detector, Provenance
from semflow.errors import CheckpointError, ConfigError, DataError
from semflow.recipes import Backbone, Couplings, cflow_ad, load, save
from semflow.training import fit
from semflow.training.checkpoint import origin, save_model, write_config

METRICS = {
    "image_auroc": 0.98765,
    "pixel_auroc": 0.9,
    "aupro": None,
    "image_f1_max": 0.75,
    "images": 40,
    "anomalous_images": 30,
    "model": "runs/a",
}


def detector(**arguments):
    backbone = Backbone("test_byobnet", "random", (8,))
    return cflow_ad(backbone, 32, couplings=Couplings(1, 4), **arguments).eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder, made = tmp_path_factory.mktemp("run"), detector()
    made.fit_score([images()])
    made.calibrate([images(19)], 0.1)
    arguments = dict(made.provenance.arguments)
    arguments["backbone"] = {**arguments["backbone"], "weights": "/srv/secret/weights.pth"}
    made.provenance = replace(made.provenance, arguments=arguments)
    write_config(folder, {"version": "0.0.9", **origin(made), "training": {"epochs": 3}})
    save_model(made, folder)
    (folder / "log.jsonl").write_text("{}\n")
    return folder


def header(text: str) -> dict:
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def test_prepared_folder_loads_as_the_same_detector(run, tmp_path) -> None:
    folder = hub.prepare(run, tmp_path / "screws")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    expected, got = load(run).predict(images()), hub.pull(folder).predict(images())
    assert torch.equal(got.score, expected.score)
    assert torch.equal(got.p_value, expected.p_value)
    again = load(folder).predict(images())
    assert torch.equal(again.score, expected.score)
    of_detector = hub.prepare(load(run), tmp_path / "of_detector")
    assert torch.equal(hub.pull(of_detector).predict(images()).score, expected.score)


def test_prepare_removes_paths_and_fingerprints(run, tmp_path) -> None:
    source = Path(shutil.copytree(run, tmp_path / "run"))
    trained = load(source)
    trained.provenance = replace(trained.provenance, fingerprints=("0123456789ab",))
    save_model(trained, source)
    folder = hub.prepare(source, tmp_path / "screws", metrics=METRICS)
    assert b"0123456789ab" in (source / "model.safetensors").read_bytes()
    for private in (b"secret", b"0123456789ab"):
        assert private not in (folder / "model.safetensors").read_bytes()
    for name in ("config.json", "README.md"):
        text = (folder / name).read_text()
        assert "secret" not in text
        assert "weights.pth" in text
    assert hub.pull(folder).provenance.arguments["backbone"]["weights"] == "weights.pth"


@pytest.mark.parametrize("writer", ["prepare", "save"])
def test_folder_that_exists_is_filled(writer, run, tmp_path) -> None:
    """It may be a mount point, with an entry of the file system, or be reached by a link."""
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "lost+found").mkdir(parents=True)
    link.symlink_to(real)
    before = real.stat().st_ino
    hub.prepare(run, link) if writer == "prepare" else save(load(run), link)
    assert link.is_symlink()
    assert real.stat().st_ino == before
    assert load(link).provenance.recipe == load(run).provenance.recipe
    assert {path.name for path in real.iterdir()} >= {"config.json", "model.safetensors", "lost+found"}


def test_card_header_is_read_by_the_client(run, tmp_path) -> None:
    folder = hub.prepare(run, tmp_path / "screws", "me/screws", "screws of ours", METRICS, license="apache-2.0")
    text = (folder / "README.md").read_text()
    data = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert data.library_name == "semflow"
    assert data.license == "apache-2.0"
    assert "anomaly-detection" in data.tags
    found = {(r.metric_name, r.metric_value) for r in data.eval_results}
    assert found == {("image AUROC", 0.98765), ("pixel AUROC", 0.9), ("image F1 at its best threshold", 0.75)}
    assert {r.dataset_name for r in data.eval_results} == {"screws of ours"}
    assert header(text)["model-index"][0]["name"] == "me/screws"
    for words in (
        "| image AUROC | 0.988 |",
        "Measured on 40 images, 30 of them anomalous",
        'hub.pull("me/screws")',
        "19 held-out images of normal parts, at a false-alarm rate of 0.1",
        "| backbone.name | `test_byobnet` |",
        "`cflow_ad`",
        "trained with semflow 0.0.9",
    ):
        assert words in text, words
    assert "AUPRO" not in text  # not measured


def test_card_without_metrics_or_calibration(tmp_path) -> None:
    text = card.model_card(detector(), "screws")
    assert "## Metrics" not in text
    assert "model-index" not in header(text)
    assert "None: predictions contain scores only" in text
    assert "Data: not described." in text


def test_card_code_runs(run, tmp_path, monkeypatch) -> None:
    folder = hub.prepare(run, tmp_path / "screws", name="screws")
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.new("RGB", (40, 40), (9, 99, 200)).save("part.png")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["prediction"].score.shape == (1,)


def test_metrics_are_read_from_the_file_of_evaluate(run, tmp_path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    folder = hub.prepare(run, tmp_path / "screws", metrics=tmp_path / "metrics.json")
    assert "| image AUROC | 0.988 |" in (folder / "README.md").read_text()
    for content, error, words in (
        ("{", DataError, "must be a file of semflow evaluate --json"),
        ("{}", ConfigError, "metrics must have one of image_auroc"),
        ("[1]", ConfigError, "metrics must have one of"),
    ):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(error, match=words):
            hub.prepare(run, tmp_path / "other", metrics=tmp_path / "metrics.json")
    assert not (tmp_path / "other").exists()


def test_push_uploads_through_the_client(run, monkeypatch) -> None:
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = "https://hub/me/screws"
    made = mock.Mock(return_value=api)
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    uploaded = {}

    def upload(**options):
        folder = Path(options["folder_path"])
        uploaded.update({path.name: path.stat().st_size for path in folder.iterdir()})

    api.upload_folder.side_effect = upload
    assert hub.push(run, "me/screws", token="t", revision="v1") == "https://hub/me/screws"
    assert made.call_args.kwargs["token"] == "t"
    api.create_repo.assert_called_once_with("me/screws", private=True, exist_ok=True)
    assert api.upload_folder.call_args.kwargs["repo_id"] == "me/screws"
    assert api.upload_folder.call_args.kwargs["revision"] == "v1"
    assert set(uploaded) == {"README.md", "config.json", "model.safetensors"}
    assert all(uploaded.values())
    hub.push(run, "me/screws", private=False)
    assert api.create_repo.call_args.kwargs["private"] is False
    api.create_repo.side_effect = PermissionError("401\nno such token")
    with pytest.raises(ConfigError, match=r"^me/screws must accept .* got PermissionError: 401 no such token"):
        hub.push(run, "me/screws")


def test_mixin_methods_call_prepare_push_and_pull(run, tmp_path, monkeypatch) -> None:
    made = load(run)
    mixed = hub.HubDetector.of(made)
    assert isinstance(mixed, Detector)
    assert mixed.flows is made.flows
    mixed.note = "shared"
    assert made.note == "shared"
    folder = mixed.save_pretrained(tmp_path / "a", repo_id="me/screws", data="ours", metrics=METRICS, license="mit")
    same = hub.prepare(made, tmp_path / "b", "me/screws", "ours", METRICS, "mit")
    for path in same.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    again = hub.HubDetector.from_pretrained(folder)
    assert type(again) is hub.HubDetector
    assert torch.equal(again.predict(images()).score, made.predict(images()).score)
    assert torch.equal(again.predict(images()).p_value, made.predict(images()).p_value)

    class Mine(hub.HubMixin, Detector):
        """Detector class of a user."""

    assert type(Mine.from_pretrained(str(folder))) is Mine
    with pytest.raises(DataError, match="not empty"):
        again.save_pretrained(folder)
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError):
            hub.HubDetector.from_pretrained(wrong)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hub.HubDetector.from_pretrained(tmp_path / "c")

    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = "https://hub/me/screws"
    monkeypatch.setattr(huggingface_hub, "HfApi", mock.Mock(return_value=api))
    address = again.push_to_hub("me/screws", branch="v1", commit_message="first", private=False, data="ours")
    assert address == "https://hub/me/screws"
    api.create_repo.assert_called_once_with("me/screws", private=False, exist_ok=True)
    sent = api.upload_folder.call_args.kwargs
    assert (sent["repo_id"], sent["revision"], sent["commit_message"]) == ("me/screws", "v1", "first")


def test_mixin_signatures_match_the_client() -> None:
    for name in ("from_pretrained", "save_pretrained", "push_to_hub"):
        ours = list(inspect.signature(getattr(hub.HubMixin, name)).parameters)
        theirs = inspect.signature(getattr(huggingface_hub.ModelHubMixin, name)).parameters
        assert ours[0] in theirs
        assert set(ours) - set(theirs) == {"options"}
    theirs = inspect.signature(huggingface_hub.ModelHubMixin.from_pretrained).parameters
    assert set(inspect.signature(hub.pull).parameters) - set(theirs) == {"name"}


def test_mixin_trains_and_calibrates_like_a_detector() -> None:
    good = [Sample(x, 0, None, f"{i}.png") for i, x in enumerate(images(24))]
    made, mixed = detector(), hub.HubDetector.of(detector())
    for each in (made, mixed):
        fit(each, good, epochs=1, batch_size=4, progress=False, calibration=9)
    assert torch.equal(made.predict(images()).p_value, mixed.predict(images()).p_value)
    assert torch.equal(made.predict(images()).score, mixed.predict(images()).score)


def test_pull_from_the_cache_without_a_network(run, tmp_path) -> None:
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--me--screws"
    hub.prepare(run, repository / "snapshots" / commit, "me/screws")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    got = hub.pull("me/screws", cache_dir=tmp_path / "cache", local_files_only=True)
    assert torch.equal(got.predict(images()).score, load(run).predict(images()).score)
    with pytest.raises(CheckpointError, match=r"^me/other must be a folder or a repository of the hub"):
        hub.pull("me/other", cache_dir=tmp_path / "cache", local_files_only=True)


def test_pull_requests_only_two_files(run, monkeypatch) -> None:
    fetch = mock.create_autospec(huggingface_hub.snapshot_download, return_value=str(run))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    hub.pull("me/screws", revision="abc")
    assert fetch.call_args.kwargs["allow_patterns"] == ["config.json", "model.safetensors"]
    assert fetch.call_args.kwargs["revision"] == "abc"


def test_invalid_sources_and_names_are_rejected(run, tmp_path) -> None:
    for name in ("screws", "a/b/c", "../x", "me/", "me/a b"):
        with pytest.raises(CheckpointError, match="must be a folder or owner/name"):
            hub.pull(name)
        with pytest.raises(ConfigError, match="owner/name"):
            hub.push(run, name)
    own = detector()
    own.provenance = Provenance()
    with pytest.raises(ConfigError, match="detector must have a recipe"):
        hub.prepare(own, tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"run directory|config\.json"):
        hub.prepare(tmp_path, tmp_path / "own")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        hub.prepare(run, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a"]


def test_import_of_hub_imports_no_client() -> None:
    assert "huggingface_hub" not in vars(transfer)
    assert "huggingface_hub" not in vars(card)
