"""What a newcomer reads first: the help says what there is to choose, and a plain folder is not suspected."""

import re
import warnings
from pathlib import Path

import pytest

from helpers.cli_cases import fit_words
from semflow.app.cli import main
from semflow.app.cli.inputs import warn_of_leaks
from semflow.recipes import RECIPES


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """In one line, without the frame."""
    assert main([command, "--help"]) == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_the_recipes_are_named_in_the_help_of_fit(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("fit", capsys)
    *others, last = RECIPES
    assert f"How the detector is built: {', '.join(others)} or {last}." in text


def test_no_check_is_said_to_leave_the_comparison_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-check leaves that out" in help_of("export", capsys)


def test_a_plain_folder_of_good_images_is_no_leak(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no test half: its images are not to be found in it a second time."""
    assert main(fit_words(data / "train" / "good", tmp_path / "run")) == 0
    assert "warning" not in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in (data / "train" / "good", data / "train", data):
            warn_of_leaks(folder, None)
