"""Training, evaluation and errors with several processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from helpers import joint_training as joint
from semflow.bases import SemanticGaussian
from semflow.errors import ConfigError
from semflow.objectives import Objective, means_over_locations
from semflow.training import Processes, TrainingConfig, evaluate, launched_processes
from semflow.training.checkpoint import load_into
from semflow.training.loading import dealt_batches, split_batches
from semflow.training.sharing import SharedBatchNorm, shared
from semflow.training.stepping import train_on_batch

TOLERANCE = 1e-5


def launch(count: int, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, joint.__file__, str(count), str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference relative to the value, or to 1 if that is larger."""
    a, b = found.double(), expected.double()
    return float(((a - b).abs() / b.abs().clamp_min(1)).max()) if a.numel() else 0.0


@pytest.fixture(scope="module", params=[2, 3])
def trained(request, tmp_path_factory) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp(f"together{request.param}")
    done = launch(request.param, folder)
    assert done.returncode == 0, done.stderr
    return request.param, folder


@pytest.mark.parametrize("case", joint.CASES)
def test_several_processes_reach_the_weights_of_one(trained, case, record_property) -> None:
    """The last batch has 2 of 10 images, so that one of three processes gets none of it."""
    count, folder = trained
    alone = joint.train(case).state_dict()
    together = [load_file(folder / f"{case}.{rank}.safetensors") for rank in range(count)]
    for name, expected in alone.items():
        assert all(torch.equal(together[0][name], other[name]) for other in together), name
        torch.testing.assert_close(together[0][name], expected, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    record_property("processes", count)
    record_property("case", case)
    record_property("difference", max(largest_difference(together[0][name], alone[name]) for name in alone))


@pytest.mark.parametrize("start", joint.STARTS)
def test_several_processes_compute_the_gradient_of_one(trained, start) -> None:
    """This holds at any weights of SANFlow, while weights after many steps differ: rounding errors grow."""
    count, folder = trained
    alone = joint.gradients(start)
    assert len(alone) > 40
    for rank in range(count):
        together = load_file(folder / f"gradients {start}.{rank}.safetensors")
        for name, expected in alone.items():
            limit = TOLERANCE * float(expected.abs().max())
            torch.testing.assert_close(together[name], expected, rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("case", joint.CASES)
def test_only_the_first_process_writes_the_detector(trained, case) -> None:
    count, folder = trained
    log = {"log.jsonl"} if joint.CASES[case]().provenance.training.epochs else set()
    assert {p.name for p in (folder / case).iterdir()} == {"config.json", "model.safetensors", "summary.json", *log}
    stored = load_into(joint.CASES[case](), folder / case).state_dict()
    for name, value in load_file(folder / f"{case}.{count - 1}.safetensors").items():
        assert torch.equal(stored[name], value), name


def test_several_processes_log_the_counts_of_one(trained, tmp_path) -> None:
    _, folder = trained
    joint.train("clipped", output=tmp_path / "run")
    logs = [
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (tmp_path / "run", folder / "clipped")
    ]
    assert len(logs[0]) == 2
    for one, several in zip(*logs, strict=True):
        assert one["steps"] == several["steps"] == 3
        assert one["clipped"] == several["clipped"] > 0
        for name in ("loss", "nll", "bce", "kl", "largest_gradient"):
            assert several[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5)


def test_standardization_of_several_processes_is_bitwise_that_of_one(trained) -> None:
    """Whole batches are dealt, and their moments merge in the order of a single process."""
    _, folder = trained
    alone = joint.train("synthesis").state_dict()
    together = load_file(folder / "synthesis.0.safetensors")
    names = [name for name in alone if name.endswith(("0.mean", "0.std"))]
    assert len(names) == 4
    assert all(torch.equal(alone[name], together[name]) for name in names)


def test_one_process_resumes_a_run_of_several(trained, tmp_path) -> None:
    """The run of several processes stops after its first epoch."""
    count, folder = trained
    stopped = launch(count, tmp_path, "stopped")
    assert stopped.returncode != 0
    assert "but got a failure of another one" in stopped.stderr
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    resumed = joint.train("synthesis", output=tmp_path / "stopped", resume=True).state_dict()
    for name, value in load_file(folder / "synthesis.0.safetensors").items():
        torch.testing.assert_close(resumed[name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def test_several_processes_compute_the_metrics_of_one(trained) -> None:
    count, folder = trained
    detector = load_into(joint.CASES["synthesis"](), folder / "synthesis").eval()
    alone = evaluate(detector, joint.labeled(), batch_size=2)
    for rank in range(count):
        together = json.loads((folder / f"metrics.{rank}.json").read_text())
        assert together == pytest.approx(alone, rel=1e-12)  # the same pixels in another order
    assert alone["pixel_auroc"] is not None


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7))
def test_parts_hold_every_image_once(images, batch_size, count) -> None:
    everyone = []
    for rank in range(count):
        processes = Processes()
        processes.rank, processes.count = rank, count
        everyone.append(
            (split_batches(images, batch_size, processes).batches, dealt_batches(images, batch_size, processes))
        )
    split = [[p for parts, _ in everyone for p in parts[step]] for step in range(-(-images // batch_size))]
    assert [p for batch in split for p in batch] == list(range(images))
    assert max(len(batch) for batch in split) <= batch_size
    for step in range(len(split)):
        sizes = [len(parts[step]) for parts, _ in everyone]
        assert max(sizes) - min(sizes) <= 1
    assert sorted(p for _, dealt in everyone for batch in dealt.batches for p in batch) == list(range(images))


@given(st.integers(0, 12), st.integers(1, 4))
def test_stream_yields_items_in_their_order(items, count) -> None:
    """Processes that take part in turns: the rounds of all are known in advance."""
    dealt = [list(range(rank, items, count)) for rank in range(count)]
    rounds = iter([[part[k : k + 1] for part in dealt] for k in range(-(-items // count) + 1)])
    processes = Processes()
    processes.rank, processes.count = 0, count

    def gather_all(value):
        expected = next(rounds)
        assert value == expected[0]
        return expected

    processes.gather_all = gather_all
    assert list(processes.stream(dealt[0])) == list(range(items))


class Halves(Processes):
    """Two processes in one, where the message of the other is known."""

    def __init__(self, other: torch.Tensor) -> None:
        super().__init__()
        self.count, self.other = 2, other

    def total(self, x):
        return x.detach() + self.other


@given(st.integers(0, 2**31 - 1), st.booleans(), st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_means_over_processes_weight_locations_equally(seed, ignoring, first) -> None:
    """Split 4 images into two parts of any size, with locations ignored."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    ignore = torch.rand(4, 3, 5, generator=generator) < 0.4 if ignoring else None
    whole = means_over_locations(maps, ignore)
    own, rest = [m[:first] for m in maps], [m[first:] for m in maps]

    def of(images):
        return None if ignore is None else ignore[images]

    class Recorder(Processes):
        def sum(self, x):
            self.sent = x
            return x

    recorder = Recorder()
    recorder.means(rest, of(slice(first, None)))
    together = Halves(recorder.sent).means(own, of(slice(None, first)))
    torch.testing.assert_close(torch.stack(list(together)), torch.stack(list(whole)))


def test_shared_batch_norm_of_one_process_equals_batch_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 4)
    one, other = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    norm = SharedBatchNorm(other, Processes())
    a, b = (y.clone().requires_grad_() for y in (x, x))
    for layer, y in ((one, a), (norm, b)):
        (layer(y).square() * torch.arange(3.0).view(3, 1, 1)).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.running_mean, other.running_mean)
    torch.testing.assert_close(one.running_var, other.running_var)
    assert other.num_batches_tracked == 1
    torch.testing.assert_close(one.eval()(x), norm.eval()(x))


def test_shared_restores_the_detector(build) -> None:
    detector = build()
    modules, objective = list(detector.modules()), detector.objective
    processes = Processes()
    processes.count = 2
    with shared(detector, processes):
        assert any(isinstance(m, SharedBatchNorm) for m in detector.modules())
        assert detector.state_dict().keys() == build().state_dict().keys()
    assert all(a is b for a, b in zip(detector.modules(), modules, strict=True))
    assert detector.objective is objective
    assert isinstance(detector.base, SemanticGaussian)
    assert Objective() == Objective(means=processes.means)  # means are not compared


def test_fit_rejects_batches_smaller_than_the_number_of_processes(build, images) -> None:
    from semflow.training import fit

    processes = Processes()
    processes.count = 5
    with pytest.raises(ConfigError, match=r"batch_size must be at least the number of processes, 5.*but got 4"):
        fit(build(), images, processes=processes, progress=False)


@pytest.mark.parametrize("locations", [None, 16])
def test_process_without_images_contributes_zero_gradients(build, images, locations) -> None:
    """Gradients are zeros instead of None, since all processes send messages of one length."""

    class Silent(Processes):
        def total(self, x):
            return x.detach().clone()

    detector = build().train()
    processes = Silent()
    processes.count, processes.rank = 2, 0
    batch, masks = torch.stack([images[0].image]), torch.zeros(1, 32, 32, dtype=torch.bool)
    before = [p.detach().clone() for p in detector.trainable()]
    optimizer, plan = torch.optim.SGD(detector.trainable(), 0.1), TrainingConfig(locations=locations)
    with shared(detector, processes), pytest.MonkeyPatch.context() as patch:
        # With only this empty part, the shared batch norm would divide by zero.
        patch.setattr(SharedBatchNorm, "forward", lambda self, x: torch.nn.BatchNorm2d.forward(self.eval(), x))
        terms = train_on_batch(detector, optimizer, plan, batch, masks, processes=processes, batch=1)
    assert terms[0] == 0
    assert all(torch.equal(p, q) for p, q in zip(detector.trainable(), before, strict=True))


def test_launched_processes_restore_the_sigterm_handler(monkeypatch, tmp_path) -> None:
    def own(*_: object) -> None:
        """Handle SIGTERM."""

    def gone() -> torch.distributed.HashStore:
        """Make the store of a process whose partner has left."""
        store = torch.distributed.HashStore()
        store.set("finished 1", "")
        store.set("left 1", "")
        return store

    made_processes = Processes()
    before = signal.signal(signal.SIGTERM, own)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for name, made in {"rendezvous": iter([(gone(), 0, 2)]), "dist.init_process_group": None}.items():
        monkeypatch.setattr(f"semflow.training.launch.{name}", lambda *_, made=made, **__: made)
    monkeypatch.setattr("semflow.training.launch.dist.destroy_process_group", lambda: None)
    monkeypatch.setattr("semflow.training.launch.Processes", lambda *_: made_processes)
    try:
        with launched_processes("cpu") as (processes, _):
            assert processes is made_processes
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nothing_keeps_the_group_after_the_block() -> None:
    """Threads of a group that is left at exit can abort the process."""
    code = (
        "import sys; from semflow.training import launched_processes\n"
        "with launched_processes('cpu') as (processes, _):\n"
        "    group = processes.group\n"
        "    import torch.distributed.nn\n"  # as torch itself does on the way
        "print(sys.getrefcount(group))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **place, "RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    left = [process.communicate(timeout=120)[0].strip() for process in started]
    assert left == ["2", "2"]  # `group` and the argument


def leaving(monkeypatch, store, ranks: int = 3, failing: int | None = None) -> list[str]:
    """Let threads be processes of one store that leave the block; return the order in which they come and go."""
    said: list[str] = []
    own = threading.local()
    environment = {"WORLD_SIZE": str(ranks), "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("semflow.training.launch.rendezvous", lambda *_, **__: iter([(store, own.rank, ranks)]))
    monkeypatch.setattr("semflow.training.launch.dist.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("semflow.training.launch.dist.destroy_process_group", lambda: said.append(f"close {own.rank}"))
    monkeypatch.setattr("semflow.training.launch.Processes", lambda *_: Processes())
    # Each waits for the next one to be done, so that they come in a known order: the last process first.
    done = [threading.Event() for _ in range(ranks + 1)]
    done[ranks].set()

    def work(rank: int) -> None:
        own.rank = rank
        with contextlib.suppress(ZeroDivisionError), launched_processes("cpu"):
            assert done[rank + 1].wait(60)
            said.append(f"done {rank}")
            done[rank].set()
            if rank == failing:
                raise ZeroDivisionError
        said.append(f"gone {rank}")

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return said


def test_processes_leave_together_and_the_first_last(monkeypatch) -> None:
    """Process 0 may own the store, and its end would take it away from the others."""
    said = leaving(monkeypatch, torch.distributed.HashStore())
    assert said[:3] == ["done 2", "done 1", "done 0"]  # none closes its connections before
    assert said.index("gone 0") > max(said.index(f"close {rank}") for rank in range(3))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_failed_process_holds_up_no_other(monkeypatch, failing) -> None:
    """It leaves at once, and the others do not wait for it."""
    said = leaving(monkeypatch, torch.distributed.HashStore(), failing=failing)
    assert {f"gone {rank}" for rank in range(3)} <= set(said)


def test_lost_store_after_the_work_is_no_error(monkeypatch) -> None:
    class Lost:
        """A store whose owner has ended."""

        def set(self, *_: object) -> None:
            raise torch.distributed.DistNetworkError("Connection was likely closed")

    said = leaving(monkeypatch, Lost(), ranks=2)
    assert {"gone 0", "gone 1"} <= set(said)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "must have WORLD_SIZE and RANK, "),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number"),
    ],
)
def test_launched_processes_reject_an_incomplete_environment(environment, words, monkeypatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words), launched_processes("cpu"):
        pass
