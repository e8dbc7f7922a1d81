"""Freed memory is kept or returned; errors for lack of memory keep their class and name the batch size to try."""

import mmap
import subprocess
import sys

import pytest
import torch

import semflow
from helpers.small_detector import make_detector, make_images
from semflow._memory import is_out_of_memory, keep_freed_memory, memory_advice, suggesting, trimming
from semflow.detectors import Detector
from semflow.errors import ConfigError
from semflow.training import TrainingConfig, evaluate, fit, refit

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]
IMAGES = make_images(9)


def raising(error: Exception, after: int = 0):
    calls = []

    def full(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) > after:
            raise error

    return full


@pytest.mark.parametrize("error", FULL)
def test_error_of_full_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert memory_advice(error) is None


@pytest.mark.parametrize("error", [RuntimeError("shape"), ValueError("out of memory"), ConfigError("out of memory")])
def test_other_errors_get_no_note(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, suggesting(8):
        raise error
    assert memory_advice(caught.value) is None


def test_innermost_block_decides() -> None:
    with pytest.raises(MemoryError) as caught, suggesting(32), suggesting(8, least=5):
        raise MemoryError
    assert caught.value.__notes__ == [
        "out of memory at a batch size of 8; try a smaller image_size or a smaller backbone"
    ]


STEPS = {
    8: "4 with training.accumulate = 2, which makes the same steps",
    3: "1",
    1: "a smaller image_size or a smaller backbone",
}


@pytest.mark.parametrize("size", STEPS)
def test_training_step_names_the_batch_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loss of a recipe, in that of its latents and in the optimizer."""
    for place in ("Detector.loss", "Detector.latent_loss"):
        error = torch.OutOfMemoryError("CUDA out of memory")
        with monkeypatch.context() as patch:
            patch.setattr(f"semflow.detectors.{place}", raising(error))
            with pytest.raises(torch.OutOfMemoryError) as caught:
                fit(make_detector(), IMAGES, TrainingConfig(1, size), progress=False)
        assert caught.value is error
        assert memory_advice(error) == f"out of memory at a batch size of {size}; try {STEPS[size]}"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", raising(torch.OutOfMemoryError("CUDA out of memory")))
        with pytest.raises(torch.OutOfMemoryError) as caught:
            fit(make_detector(), IMAGES, TrainingConfig(1, size), progress=False)
    assert memory_advice(caught.value) == f"out of memory at a batch size of {size}; try {STEPS[size]}"


@pytest.mark.parametrize(
    ("options", "advice"),
    [({"accumulate": 3}, "2 with training.accumulate = 6, which makes the same steps"), ({"locations": 40}, "2")],
)
def test_advice_keeps_the_steps_if_it_can(options: dict, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semflow.objectives.Objective.__call__", raising(torch.OutOfMemoryError("CUDA")))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fit(make_detector(), IMAGES, TrainingConfig(1, 4, **options), progress=False)
    assert memory_advice(caught.value) == f"out of memory at a batch size of 4; try {advice}"


CALLS = {
    "predict": lambda detector: detector.predict(torch.rand(4, 3, 32, 32)),
    "predict, by keyword": lambda detector: detector.predict(images=torch.rand(4, 3, 32, 32)),
    "evaluate": lambda detector: evaluate(detector, IMAGES, batch_size=4),
    "calibrate": lambda detector: semflow.calibrate(detector, IMAGES, batch_size=4),
    "refit": lambda detector: refit(detector, IMAGES, batch_size=4),
    "fit_score": lambda detector: detector.fit_score([torch.rand(4, 3, 32, 32)]),
    "prepare": lambda detector: detector.prepare([torch.rand(4, 3, 32, 32)]),
}


@pytest.mark.parametrize("place", ["features", "flows"])
@pytest.mark.parametrize("call", CALLS)
def test_pass_over_images_names_the_batch_size(call: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if call == "prepare" and place == "flows":
        pytest.skip("runs no flow")
    detector: Detector = make_detector().eval()
    monkeypatch.setattr(type(getattr(detector, place)), "forward", raising(torch.OutOfMemoryError("CUDA")))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        CALLS[call](detector)
    assert memory_advice(caught.value) == "out of memory at a batch size of 4; try 2"


def test_passes_return_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("semflow._memory._of_glibc", lambda name: calls.append)
    assert list(trimming(range(19))) == list(range(19))
    assert calls == [0, 0]
    monkeypatch.setattr("semflow._memory._of_glibc", lambda name: None)
    assert list(trimming(range(19))) == list(range(19))


FAULTS = """
import resource, threading
import torch
from semflow._memory import keep_freed_memory, trimming

def blocks(turns):
    for _ in turns:
        kept = [torch.ones(2**22) for _ in range(8)]  # 128 MiB, more than glibc keeps
        del kept

def faults(turns):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks(turns)
    thread = threading.Thread(target=blocks, args=(turns,))
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults(range(20))
print(faults(range(40)), faults(trimming(range(40))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_used_again_until_a_pass_returns_it() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())
    turn = 8 * 2**12  # pages of 4 KiB
    assert kept < turn / 4
    if mmap.PAGESIZE == 2**12:
        assert returned > 3 * turn  # after every eighth of 40


def test_options_are_those_of_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr("semflow._memory._of_glibc", lambda name: lambda *given: calls.append((name, *given)))
    keep_freed_memory()
    assert calls == [("mallopt", -3, 2**25), ("mallopt", -1, 2**30), ("mallopt", -8, 1)]
    monkeypatch.setattr("semflow._memory._of_glibc", lambda name: None)
    keep_freed_memory()
