"""For the server that processes are forked from: everything is imported once, and nothing is computed."""

from semflow.app.cli import main
from semflow.features.timm_module import load_timm

load_timm()


def run(words: list[str]) -> None:
    raise SystemExit(main(words))
