"""`check_flow` passes correct flows and names the laws that faulty ones violate."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from helpers import faulty_flows as faulty
from semflow.errors import ShapeError
from semflow.testing import LAWS, LawError, check_flow


def features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("make", [faulty.Sound, faulty.SoundSample, lambda: faulty.BatchNorm().eval()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_check_flow_passes_correct_flows(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    found = check_flow(make().to(dtype), features(3, 4, 2, 3).to(dtype))
    assert list(found) == list(LAWS)
    assert max(found.values()) < 1e-6


# Each faulty flow with all laws that it violates.
FAULTS: dict[type[nn.Module], set[str]] = {
    faulty.WrongSign: {"log_det"},
    faulty.WrongSignAtTheIdentity: {"log_det"},
    faulty.WrongAxis: {"locality", "log_det"},
    faulty.WrongSpan: {"log_det"},
    faulty.Broadcasts: {"locality", "batch", "log_det"},
    faulty.ScalarLogDet: {"shapes"},
    faulty.UndeclaredSample: {"shapes"},
    faulty.BatchSize: {"batch"},
    faulty.BatchMean: {"locality", "batch", "gradients"},
    faulty.RoughInverse: {"inverse"},
    faulty.HalfLogDet: {"shapes"},
    faulty.HalfUnderAutocast: {"autocast"},
    faulty.Neighbors: {"locality"},
    faulty.DetachedNeighbors: {"locality", "gradients"},
    faulty.ForgottenBuffer: {"state_dict"},
    faulty.ForgottenTensor: {"state_dict"},
    faulty.Counter: {"purity"},
    faulty.Unused: {"gradients"},
    faulty.Detached: {"gradients"},
    faulty.Branches: {"compiled"},
    faulty.Views: {"layout"},
    faulty.NotFinite: {"shapes"},
    faulty.OnlyZ: {"shapes"},
    faulty.Transposes: {"shapes"},
    faulty.Raises: {"shapes"},
}


@pytest.mark.parametrize("make", FAULTS, ids=lambda make: make.__name__)
def test_check_flow_names_exactly_the_violated_laws(make: Callable[[], nn.Module]) -> None:
    # With B == W and C / 2 == H, wrong shapes are hard to find. Only one fault needs the compiler.
    backend = "aot_eager" if make is faulty.Branches else None
    with pytest.raises(LawError) as caught:
        check_flow(make(), features(3, 4, 2, 3), compile_backend=backend)
    error = caught.value
    assert isinstance(error, AssertionError)
    assert set(error.laws) == FAULTS[make]
    first, *lines = str(error).splitlines()
    assert first.startswith(f"{make.__name__} must satisfy all laws of flows, but got violations of ")
    assert len(lines) == len(error.laws)
    for law, line in zip(error.laws, lines, strict=True):
        assert law in first
        assert line.startswith(f"    {law}: ")
        assert " must " in line
        assert ", but got " in line


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (faulty.BatchNorm, "batch: z of an image alone must equal that in a batch"),
        (faulty.Dropout, "purity: z must be the same when forward is called again"),
        (faulty.RandomLogDet, "purity: log_det must be the same when forward is called again"),
        (faulty.InPlace, "purity: forward must not change x, but got another x"),
        (faulty.InverseInPlace, "purity: inverse must not change z, but got another z"),
        (faulty.InverseNotFinite, r"inverse: inverse\(forward\(x\)\) must equal x to .*, but got a deviation of inf"),
    ],
)
def test_check_flow_reports_the_cause_among_several_violations(make: Callable[[], nn.Module], line: str) -> None:
    with pytest.raises(LawError, match=f"\n    {line}"):
        check_flow(make(), features(3, 4, 2, 3), compile_backend=None)


def test_message_shows_expected_and_found() -> None:
    with pytest.raises(
        LawError, match=r"inverse: inverse\(forward\(x\)\) must equal x to 0.0001 in float32, but got a deviation"
    ):
        check_flow(Far(), features(2, 4, 2, 3), compile_backend=None)
    with pytest.raises(LawError, match=r"log_det must be \(2, 2, 3\) for event 'location', but got \(2,\)"):
        check_flow(Far(event="location", spans=True), features(2, 4, 2, 3), compile_backend=None)
    with pytest.raises(LawError, match="the gradient of unused must not be zero"):
        check_flow(faulty.Unused(), features(2, 4, 2, 3), compile_backend=None)
    with pytest.raises(LawError, match=r"must run, but got RuntimeError: no context, no flow$") as caught:
        check_flow(faulty.Raises(), features(2, 4, 2, 3), compile_backend=None)
    assert isinstance(caught.value.__cause__, RuntimeError)


class Far(faulty.SoundSample):
    def __init__(self, event: str = "sample", spans: bool = False) -> None:
        super().__init__()
        self.event, self.spans = event, spans

    def inverse(self, z: Tensor, context: object = None) -> Tensor:
        return super().inverse(z) + (0.0 if self.spans else 1.0)


@pytest.mark.parametrize("event", ["batch", None])
def test_check_flow_rejects_undeclared_event(event: str | None) -> None:
    flow = faulty.Sound()
    flow.event = event  # type: ignore[assignment]
    with pytest.raises(LawError, match="shapes: event must be 'location' or 'sample'") as caught:
        check_flow(flow, features(2, 4, 2, 3))
    assert caught.value.laws == ("shapes",)


def test_perturbation_reveals_faults_at_the_identity() -> None:
    flow = faulty.WrongSignAtTheIdentity()
    assert check_flow(flow, features(2, 4, 2, 3), perturbation=0.0, compile_backend=None)["log_det"] == 0
    with pytest.raises(LawError):
        check_flow(flow, features(2, 4, 2, 3), perturbation=1e-3, compile_backend=None)


def test_tolerance_bounds_the_deviation() -> None:
    flow, x = faulty.RoughInverse(), features(2, 4, 2, 3)
    assert 1e-6 < check_flow(flow, x, tolerance=1e-3, compile_backend=None)["inverse"] < 1e-4
    with pytest.raises(LawError, match=r"to 1e-06 in float64"):  # the deviation is allowed in float32
        check_flow(flow, x, compile_backend=None)


def test_check_flow_does_not_change_the_flow_or_x() -> None:
    for flow in (faulty.Sound(), faulty.BatchNorm(), faulty.Counter(), faulty.InPlace(), faulty.ForgottenTensor()):
        x = features(3, 4, 2, 3)
        state, given = deepcopy(flow.state_dict()), x.clone()
        with suppress(LawError):
            check_flow(flow, x, compile_backend=None)
        assert torch.equal(x, given)
        assert not x.requires_grad
        assert flow.training
        assert all(torch.equal(value, state[name]) for name, value in flow.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in flow.parameters())


def test_result_is_determined_by_the_seed() -> None:
    x, flow = features(2, 4, 2, 3), faulty.Sound()
    before = torch.get_rng_state()
    first, again, other = (check_flow(flow, x, seed=seed, compile_backend=None) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_parameters_are_not_perturbed() -> None:
    """A perturbed rotation would not be a rotation."""

    class Rotation(faulty.Sound):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Parameter(torch.linalg.qr(features(4, 4))[0], requires_grad=False)

        def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
            return super().forward(torch.einsum("ij,bjhw->bihw", self.q, x))

        def inverse(self, z: Tensor, context: object = None) -> Tensor:
            return torch.einsum("ij,bihw->bjhw", self.q, super().inverse(z))

    check_flow(Rotation(), features(2, 4, 2, 3), compile_backend=None)


def test_factory_distinguishes_constants_from_unsaved_tensors() -> None:
    x = features(2, 4, 2, 3)
    check_flow(faulty.ForgottenTensor(), x, compile_backend=None, factory=faulty.ForgottenTensor)
    seeds = iter(range(1, 3))
    with pytest.raises(LawError, match="state_dict: z must be the same after loading the state dict"):
        check_flow(
            faulty.ForgottenTensor(), x, compile_backend=None, factory=lambda: faulty.ForgottenTensor(next(seeds))
        )


def test_context_per_image_is_split_with_the_batch() -> None:
    class Conditioned(faulty.Sound):
        def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
            z, log_det = super().forward(x)
            return z + context, log_det

        def inverse(self, z: Tensor, context: object = None) -> Tensor:
            return super().inverse(z - context)

    check_flow(Conditioned(), features(2, 4, 2, 3), features(2, 4, 2, 3) + 1, compile_backend=None)
    check_flow(Conditioned(), features(2, 4, 2, 3), features(4, 2, 3) + 1, compile_backend=None)


@pytest.mark.parametrize(
    "x", [features(1, 4, 2, 3), features(4, 2, 3), torch.zeros(2, 4, 2, 3, dtype=torch.long), features(2, 2050, 1, 1)]
)
def test_check_flow_rejects_invalid_x(x: Tensor) -> None:
    with pytest.raises(ShapeError, match="x must "):
        check_flow(faulty.Sound(), x)


def test_check_flow_rejects_large_maps_of_sample_flows() -> None:
    with pytest.raises(ShapeError, match=r"at most 2048 rows, .* 2304 rows for event 'sample'"):
        check_flow(faulty.SoundSample(), features(2, 4, 24, 24))


def test_compiled_law_is_not_limited_by_recompilations() -> None:
    for channels in range(2, 20, 2):
        check_flow(faulty.Sound(channels), features(2, channels, 1, 2))


@pytest.mark.parametrize("law", LAWS)
def test_every_law_has_a_docstring(law: str) -> None:
    assert LAWS[law].__doc__
