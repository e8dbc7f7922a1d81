"""Jobs in separate processes."""

import os
import threading
from contextlib import closing
from pathlib import Path

from benchmarks.shared.runner import THREADS, run_all

from helpers.spawned_work import work


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[0] != "Z" if stat.is_file() else True


def test_failing_and_dying_jobs_do_not_affect_the_others() -> None:
    before = {name: os.environ.get(name) for name in THREADS}
    jobs = [("give", "a"), ("raise", "b"), ("die", "c"), ("environment", "OMP_NUM_THREADS"), ("give", "e")]
    outcomes = {o.job: o for o in run_all(jobs, work, at_a_time=2, threads=3)}
    assert set(outcomes) == set(jobs)
    assert [outcomes[job].result for job in jobs] == ["a", None, None, "3", "e"]
    assert outcomes[jobs[1]].error == "ValueError: cannot do b in two lines"
    assert "spawned_work.py" in outcomes[jobs[1]].traceback
    assert "SIGKILL" in outcomes[jobs[2]].error
    assert not outcomes[jobs[0]].error
    assert before == {name: os.environ.get(name) for name in THREADS}


def test_closing_the_generator_ends_its_processes(tmp_path: Path) -> None:
    pipes = [tmp_path / "first", tmp_path / "second"]
    for pipe in pipes:
        os.mkfifo(pipe)
    pids: list[int] = []
    readers = [threading.Thread(target=lambda pipe=pipe: pids.append(int(pipe.read_text()))) for pipe in pipes]
    for reader in readers:
        reader.start()
    with closing(run_all([("give", "x"), *(("sleep", str(p)) for p in pipes)], work, at_a_time=3)) as outcomes:
        assert next(outcomes).result == "x"
        for reader in readers:
            reader.join(60)
        assert [alive(pid) for pid in pids] == [True, True]
    assert not any(alive(pid) for pid in pids)
