"""Settings of `semflow fit`: --set, --config and --print-config."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from helpers.cli_cases import SMALL, fit_words, only_line, snapshot
from helpers.recipe_cases import ALL
from semflow.app.cli import main


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["fit", *words, "--print-config"]) == 0
    return capsys.readouterr().out


def arguments(run: Path) -> dict[str, object]:
    return json.loads((run / "config.json").read_text())["arguments"]


@pytest.mark.parametrize("recipe", ALL)
def test_printed_config_of_each_recipe_prints_itself(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "--recipe", recipe, "--data", "parts", "--seed", "3", "--hold-out", "9")
    config = tomllib.loads(text)
    assert (config["recipe"], config["data"], config["seed"], config["hold_out"]) == (recipe, "parts", 3, 9)
    assert config["training"]["seed"] == 3
    file = tmp_path / "part.toml"
    file.write_text(text)
    assert printed(capsys, "--config", str(file)) == text


@pytest.mark.parametrize(
    "more", [["--recipe", "sanflow", "--seed", "3"], ["--recipe", "fastflow", "--set", "statistics.mode", "0.2"]]
)
def test_fit_from_the_printed_config_gives_the_same_run(
    more: list[str], shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--epochs", "2"]
    words = ["--data", str(shared_data), "--hold-out", "4", "--false-alarm-rate", "0.2", *small, *more]
    words += [] if "--set" in more else ["--set"]
    words += ["couplings.blocks", "1", "backbone.strides", "8,16"]
    device = ["--device", "cpu", "--output"]
    (tmp_path / "part.toml").write_text(printed(capsys, *words))
    assert main(["fit", *words, *device, str(tmp_path / "one")]) == 0
    assert main(["fit", "--config", str(tmp_path / "part.toml"), *device, str(tmp_path / "two")]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_options_override_the_config_and_set_overrides_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "part.toml"
    file.write_text(
        'recipe = "msflow"\ndata = "parts"\nseed = 1\nhold_out = 5\n'
        '[backbone]\nname = "resnet50"\n[training]\nepochs = 5\nseed = 2\n'
    )
    assert tomllib.loads(printed(capsys, "--config", str(file)))["training"]["seed"] == 2
    words = [
        "--data",
        "others",
        "--epochs",
        "6",
        "--seed",
        "7",
        "--set",
        "training.seed",
        "8",
        "couplings.blocks",
        "1,2,3",
    ]
    found = tomllib.loads(printed(capsys, "--config", str(file), "--calibration", "good", *words))
    assert found["calibration"] == "good"
    assert "hold_out" not in found
    assert (found["recipe"], found["data"], found["seed"]) == ("msflow", "others", 7)
    assert (found["training"]["epochs"], found["training"]["seed"]) == (6, 8)
    assert (found["backbone"]["name"], found["couplings"]["blocks"]) == ("resnet50", [1, 2, 3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "blobs = 3",
            "names in part.toml must be of data, category, categories, recipe, calibration, hold_out, ",
        ),
        ("[couplings]\nblobs = 3", "couplings.blocks, couplings.position_channels"),
        ("[couplings]\nblocks = 'three'", "couplings.blocks must be a whole number, but got 'three'"),
        ("hold_out = 'many'", "hold_out in part.toml must be of type int, but got 'many'"),
        ("hold_out = -1", "--hold-out must be at least 0"),
        ("recipe = 'soup'", "recipe must be one of cflow_ad"),
        ("recipe", "--config part.toml must be a TOML file"),
    ],
)
def test_fit_rejects_a_wrong_config(
    text: str,
    message: str,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("part.toml").write_text(text)
    before = snapshot(tmp_path)
    assert main(["fit", "--config", "part.toml", "--data", str(shared_data), "--output", "run"]) == 2
    assert message in only_line(capsys)
    assert snapshot(tmp_path) == before


def test_fit_needs_data_and_output(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--output", str(tmp_path / "run")]) == 2
    assert "--data must be a folder, but got none" in only_line(capsys)
    assert main(["fit", "--data", str(shared_data)]) == 2
    assert "--output must be a folder, but got none" in only_line(capsys)
    assert main(["fit", "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml must be a readable file, but got No such file" in only_line(capsys)


def test_set_converts_words_to_the_types_of_the_settings(shared_data: Path, tmp_path: Path) -> None:
    small = [word for word in SMALL if word != "8,16"]
    words = [*fit_words(shared_data, tmp_path / "run")[: -len(SMALL)], *small, "[8]"]
    words += ["synthesis", "none", "statistics.mode", "1", "statistics.predicted_mean", "TRUE", "training.clip", "none"]
    assert main(words) == 0
    found = arguments(tmp_path / "run")
    assert found["backbone"]["strides"] == [8]
    assert (found["synthesis"], found["training"]["clip"]) == ("none", "none")
    assert (found["statistics"]["mode"], found["statistics"]["predicted_mean"]) == (1, True)


def test_memory_flow_is_the_default_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert tomllib.loads(printed(capsys))["recipe"] == "memory_flow"


def test_fit_says_whether_the_flow_is_used(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--epochs", "1", "--device", "cpu"]
    small += ["--set", "couplings.blocks", "1", "memory", "50"]
    assert main(["fit", "--data", str(shared_data), "--output", str(tmp_path / "run"), *small]) == 0
    assert re.search(
        r"the flow is (used|left out): its log-det has a spread of \d\.\d\d, (at most|more than) 0.3",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize("words", [["--epochs", "3"], ["--set", "training.epochs", "3"]])
def test_epochs_take_the_place_of_the_recipes_steps(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def training(*more: str) -> dict[str, object]:
        return tomllib.loads(printed(capsys, "--recipe", "memory_flow", "--data", "parts", *more))["training"]

    assert training()["steps"] == 160
    assert (training(*words)["steps"], training(*words)["epochs"]) == ("none", 3)
    assert training("--set", "training.steps", "5")["steps"] == 5
    both = ["--epochs", "3", "--set", "training.steps", "5"]
    assert main(["fit", "--recipe", "memory_flow", "--data", "parts", "--print-config", *both]) == 2  # one is ignored
    assert "--epochs must be left out with --set training.steps" in capsys.readouterr().err
