"""Module for the fork server of the tests: imports everything once and computes nothing."""

from semflow.app.cli import main
from semflow.features.timm_module import load_timm

load_timm()


def run(words: list[str]) -> None:
    raise SystemExit(main(words))
