"""`semflow score` on a cluster of two nodes: both work, one is killed, one has other folders."""

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
# A machine may come back within five minutes; a test does not wait for it as long.
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
    """With the score that one process gives it."""
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


def test_a_node_that_is_killed_is_done_without(nodes: Nodes, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    """Neither has room for both workers: each node has one of them, and what is left goes on with its own."""
    nodes.add(3)
    other = nodes.add(3)
    with score(nodes, tiny_run, photos, tmp_path / "out") as command:
        until_blocks(command, tmp_path / "out", 3)
        other.kill()
        assert command.wait() == 0, command.said()
    assert f"scored {IMAGES} images" in command.said()
    every_image_once(tmp_path / "out", photos, tiny_run)


def test_what_is_left_may_have_no_room(nodes: Nodes, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    """Both workers were on the node that is killed: one line, and with what is left the same folder is completed."""
    nodes.add(1)
    other = nodes.add(4)
    with score(nodes, tiny_run, photos, tmp_path / "out", patience=5) as command:
        until_blocks(command, tmp_path / "out", 3)
        other.kill()
        assert command.wait() == 2, command.said()
    last = command.said().splitlines()[-1]
    assert last.startswith("error: a machine was lost, and those that are left have 1 CPUs and 0 GPUs, too few for 2")
    kept = files(tmp_path / "out")
    assert 3 <= len(kept) < IMAGES // 2
    nodes.add(5)
    with score(nodes, tiny_run, photos, tmp_path / "out") as command:
        assert command.wait() == 0, command.said()
    assert f"going on: {len(kept)} of {IMAGES // 2} blocks are done already" in command.said()
    assert kept.items() <= files(tmp_path / "out").items()
    every_image_once(tmp_path / "out", photos, tiny_run)


def other_mounts() -> list[str]:
    """The words that begin a command with mounts of its own; none where that is not allowed."""
    for words in (["unshare", "-m"], ["unshare", "-rm"]):
        if shutil.which("unshare") and subprocess.run([*words, "true"], check=False).returncode == 0:
            return words
    return []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("output", "it is another folder than where the command runs; choose one that all machines share"),
        ("no output", "expected the manifest of a run"),
        ("model", "is another one on a worker than where the command runs; share or copy it"),
    ],
)
def test_a_node_with_other_folders(
    nodes: Nodes, tiny_run: Path, photos: Path, tmp_path: Path, what: str, said: str
) -> None:
    """One that has something else at the place of the model or of the output, as with a disk of its own."""
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
    last = command.said().splitlines()[-1]  # before it Ray may say that it tries again
    assert last.startswith("error: ")
    assert said in last
    assert command.said().count("error: ") == 1


def test_a_cluster_that_wants_its_token_says_so(nodes: Nodes, tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    nodes.add(3)
    del nodes.environment["RAY_AUTH_MODE"]
    with score(nodes, tiny_run, photos, tmp_path / "out") as command:
        assert command.wait() == 2, command.said()
    assert command.said().splitlines()[-1].startswith("error: RAY_ADDRESS ")
    assert "the cluster expects its token; set RAY_AUTH_MODE=token" in command.said()
