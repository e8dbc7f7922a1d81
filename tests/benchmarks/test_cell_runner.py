"""Jobs in processes: results, errors, deaths, threads, and an end that leaves no process behind."""

import os
import time
from contextlib import closing
from pathlib import Path

from benchmarks.shared.runner import THREADS, run_all

from helpers.spawned_work import work


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if Path("/proc").is_dir() else True
    )


def test_a_job_that_fails_or_dies_does_not_take_the_others_with_it() -> None:
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


def test_the_end_of_the_run_ends_its_processes(tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    began = time.monotonic()
    with closing(run_all([("give", "x"), *(("sleep", str(f)) for f in files)], work, at_a_time=3)) as outcomes:
        assert next(outcomes).result == "x"
        while not all(f.exists() and f.read_text() for f in files):
            assert time.monotonic() - began < 30
            time.sleep(0.05)
        pids = [int(f.read_text()) for f in files]
        assert all(alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids)
    assert time.monotonic() - began < 40
