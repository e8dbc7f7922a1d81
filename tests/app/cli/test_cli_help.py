"""Help texts of the commands."""

import re
import warnings
from pathlib import Path

import pytest

from helpers.cli_cases import fit_words
from helpers.recipe_cases import BUILT_IN
from semflow.app.cli import main
from semflow.app.cli.inputs import warn_of_leaks


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the help in one line, without the frame."""
    assert main([command, "--help"]) == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_help_of_fit_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("fit", capsys)
    *others, last = (f"{name} (default)" if name == "memory_flow" else name for name in BUILT_IN)
    assert f"Detector to build: {', '.join(others)} or {last}." in text


def test_help_of_export_explains_no_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-check skips the comparison" in help_of("export", capsys)


def test_plain_folder_of_good_images_does_not_warn_of_leaks(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_words(data / "train" / "good", tmp_path / "run")) == 0
    assert "warning" not in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in (data / "train" / "good", data / "train", data):
            warn_of_leaks(folder)
