"""`semflow score` on a cluster of two nodes."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.keeping import Kept
from helpers.ray_nodes import Nodes
from helpers.scale_cases import SIZE, files, make_images, score_words
from semflow import load
from semflow.data import open_dataset
from semflow.training import results

pytest.importorskip("ray", reason="needs Ray, the extra ray")
parquet: Any = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs addresses and processes of Linux"),
]

IMAGES, THREADS = 60, "2"
PROGRAM = (
    "import sys; from semflow.app.scale import waiting; waiting.PATIENCE = float(sys.argv.pop(1)); "
    "from semflow.app.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path, [Path(__file__).parents[2]]) as found:
        yield found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images") / "photos", IMAGES, seed=3)


def score(nodes: Nodes, run: Path, photos: Path, output: Path, patience: int = 120) -> Kept:
    """Two workers of two CPUs each."""
    words = score_words(run, photos, output, "--workers", "2", "--threads", THREADS, "--block-size", "2")
    words.remove("--threads")  # the one of every other test
    words.remove("1")
    return Kept([sys.executable, "-c", PROGRAM, str(patience), *words], nodes.folder / "command.txt", nodes.environment)


def every_image_once(output: Path, photos: Path, run: Path) -> None:
    """Check that each image has one row, with the score of a single process."""
    found = parquet.read_table(output / "blocks").to_pylist()
    alone = {result.sample.path: result.score for result in results(load(run), open_dataset(photos, "predict", SIZE))}
    assert len(found) == len(alone) == IMAGES
    expected = {Path(path).relative_to(photos).as_posix(): score for path, score in alone.items()}
    assert {row["path"]: row["score"] for row in found} == pytest.approx(expected, rel=1e-6, abs=1e-6)


def until_blocks(command: Kept, output: Path, count: int) -> None:
    limit = time.monotonic() + 120
    while command.process.poll() is None and len(files(output) if (output / "blocks").is_dir() else ()) < count:
        assert time.monotonic() < limit, command.said()
        time.sleep(0.01)


def test_killed_node_is_replaced_by_the_other(nodes: Nodes, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    nodes.add(3)
    other = nodes.add(3)
    with score(nodes, tiny_run, photos, tmp_path / "out") as command:
        until_blocks(command, tmp_path / "out", 3)
        other.kill()
        assert command.wait() == 0, command.said()
    assert f"scored {IMAGES} images" in command.said()
    every_image_once(tmp_path / "out", photos, tiny_run)


def test_too_few_cpus_after_a_kill_end_the_run(nodes: Nodes, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    nodes.add(1)
    other = nodes.add(4)
    with score(nodes, tiny_run, photos, tmp_path / "out", patience=5) as command:
        until_blocks(command, tmp_path / "out", 3)
        other.kill()
        assert command.wait() == 2, command.said()
    last = command.said().splitlines()[-1]
    assert last.startswith("error: the cluster must run 2 workers, but got 1 CPUs and 0 GPUs after losing a machine")
    kept = files(tmp_path / "out")
    assert 3 <= len(kept) < IMAGES // 2
    nodes.add(5)
    with score(nodes, tiny_run, photos, tmp_path / "out") as command:
        assert command.wait() == 0, command.said()
    assert f"continuing: {len(kept)} of {IMAGES // 2} blocks are done" in command.said()
    assert kept.items() <= files(tmp_path / "out").items()
    every_image_once(tmp_path / "out", photos, tiny_run)


def other_mounts() -> list[str]:
    """Return the command prefix for a mount namespace, or nothing if that is not allowed."""
    for words in (["unshare", "-m"], ["unshare", "-rm"]):
        if shutil.which("unshare") and subprocess.run([*words, "true"], check=False).returncode == 0:
            return words
    return []


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("output", "must be the same folder on all machines"),
        ("no output", "must be the manifest of a run"),
        ("model", "must be the same on all machines, but got another one on a worker"),
    ],
)
def test_node_with_other_folders_is_rejected(
    nodes: Nodes, tiny_run: Path, photos: Path, tmp_path: Path, what: str, message: str
) -> None:
    words = other_mounts()
    if not words:
        pytest.skip("mount namespaces are not allowed here")
    run, output, elsewhere = tmp_path / "run", tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(tiny_run, run)
    output.mkdir()
    if what == "model":
        shutil.copytree(tiny_run, elsewhere)
        with (elsewhere / "config.json").open("a") as file:
            file.write("\n")
    else:
        elsewhere.mkdir()
        if what == "output":
            (elsewhere / "score.json").write_text("{}")
    hidden = str(run if what == "model" else output)
    nodes.add(3)
    nodes.add(3, [*words, "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(elsewhere), hidden])
    with score(nodes, run, photos, output) as command:
        assert command.wait() == 2, command.said()
    last = command.said().splitlines()[-1]  # Ray may report retries before it
    assert last.startswith("error: ")
    assert message in last
    assert command.said().count("error: ") == 1


def test_missing_token_of_a_cluster_is_named(nodes: Nodes, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    nodes.add(3)
    del nodes.environment["RAY_AUTH_MODE"]
    with score(nodes, tiny_run, photos, tmp_path / "out") as command:
        assert command.wait() == 2, command.said()
    assert command.said().splitlines()[-1].startswith("error: RAY_AUTH_TOKEN must be ")
    assert "set RAY_AUTH_MODE=token" in command.said()
