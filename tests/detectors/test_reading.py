"""Reading a detector changes nothing: predictions in any mode, from several threads, with hooks and batch norms."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from helpers.recipe_cases import ALL, images, small, stack
from helpers.small_detector import make_detector, make_images
from semflow.adapters import with_statistics
from semflow.data import Sample
from semflow.detectors import Detector
from semflow.features import FrozenFeatures, TimmFeatures
from semflow.metrics import HistogramAccumulator, ImageAccumulator, PixelAccumulator
from semflow.nn import in_eval_mode, modes, switched_to_eval
from semflow.training import calibrate, evaluate, refit

THREADS = 4


def batches(count: int = 12) -> list[Tensor]:
    return [sample.image[None] for sample in make_images(count)]


def state(detector: nn.Module) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """Copy what reading must not change: all tensors and all modes."""
    tensors = {name: x.clone() for name, x in detector.state_dict().items()}
    return tensors, {name: module.training for name, module in detector.named_modules()}


def assert_unchanged(detector: nn.Module, before: tuple[dict[str, Tensor], dict[str, bool]]) -> None:
    tensors, modes = state(detector)
    assert modes == before[1]
    for name, x in tensors.items():
        assert torch.equal(x, before[0][name]), name


def in_threads(read: Callable[[Tensor], Tensor], given: list[Tensor]) -> list[Tensor]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, given * 2))[: len(given)]


def mixed(detector: Detector) -> None:
    """Switch every other module to train mode, also in the backbone."""
    for number, module in enumerate(detector.modules()):
        module.training = number % 2 == 0


class Locked(nn.Module):
    """Part that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return x


def uncopied(detector: Detector) -> None:
    detector.train()
    detector.head.networks[0].locked = Locked()


def hooked(detector: Detector) -> None:
    detector.train()
    detector.flows[0].register_forward_hook(lambda module, given, result: None)
    detector.head.register_forward_pre_hook(lambda module, given: None)


@pytest.mark.parametrize("mode", [Detector.eval, Detector.train, mixed, uncopied, hooked])
@pytest.mark.parametrize("read", ["predict", "call"])
def test_reading_in_any_mode_and_in_threads_changes_nothing(mode: Callable[[Detector], object], read: str) -> None:
    detector = make_detector().eval()
    given = batches()
    expected = [detector.predict(x).score for x in given]
    mode(detector)
    before = state(detector)
    method = detector.predict if read == "predict" else detector
    for found in (in_threads(lambda x: method(x).score.detach(), given), [method(x).score.detach() for x in given]):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert_unchanged(detector, before)


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_reads_in_train_mode(name: str) -> None:
    detector = small(name)
    given = stack(images(4))
    detector.fit_base([given])
    detector.fit_score([given])
    expected = detector.eval().predict(given)
    before = state(detector.train())
    (again, *_) = in_threads(lambda x: detector.predict(x).score, [given])
    assert torch.equal(again, expected.score)
    assert_unchanged(detector, before)


def test_predictions_during_passes_that_fit_are_those_of_eval_mode() -> None:
    """Another thread switches the modes meanwhile."""
    detector, given = make_detector().eval(), batches(4)
    expected = [detector.predict(x).score for x in given]
    detector.train()
    before, stop = state(detector), threading.Event()

    def switch() -> None:
        while not stop.is_set():
            with switched_to_eval(detector):
                pass

    with ThreadPoolExecutor(1) as pool:
        switching = pool.submit(switch)
        found = in_threads(lambda x: detector.predict(x).score, given * 5)
        stop.set()
        switching.result(timeout=60)
    torch.testing.assert_close(found, expected * 5, rtol=0, atol=1e-6)
    assert_unchanged(detector, before)


def test_passes_that_fit_leave_modes_and_batch_norms_alone() -> None:
    detector = make_detector()
    samples = make_images(12)
    detector.train()
    modes = {name: module.training for name, module in detector.named_modules()}
    norms = {name: x.clone() for name, x in detector.state_dict().items() if "running" in name or "tracked" in name}
    assert norms
    labeled = [(sample.image, k % 2) for k, sample in enumerate(samples)]
    passes = {
        "prepare": lambda: detector.prepare([samples[0].image[None]]),
        "fit_score": lambda: detector.fit_score([sample.image[None] for sample in samples]),
        "calibrate": lambda: calibrate(detector, make_images(9, seed=1), 0.1),
        "evaluate": lambda: evaluate(detector, labeled),
    }
    for name, run in passes.items():
        run()
        assert {n: module.training for n, module in detector.named_modules()} == modes, name
        for key, x in norms.items():
            assert torch.equal(detector.state_dict()[key], x), (name, key)
    refit(detector, samples)
    assert all(torch.equal(detector.state_dict()[key], x) for key, x in norms.items())


class OwnBackbone(nn.Module):
    """Backbone of a user, with a batch norm and without `FrozenFeatures`."""

    channels, strides = (6,), (4,)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(images))]


def test_training_keeps_the_statistics_of_a_backbone_of_the_users_own() -> None:
    import semflow
    from semflow.bases import StandardNormal
    from semflow.flows import GlobalAffine

    backbone = OwnBackbone()
    before = copy.deepcopy(backbone.state_dict())
    detector = Detector(backbone, [GlobalAffine(6)], StandardNormal())
    semflow.fit(detector, make_images(8), epochs=2, batch_size=4, progress=False, cache_bytes=0)
    detector.train()
    detector.predict(batches(1)[0])
    assert all(torch.equal(x, before[name]) for name, x in backbone.state_dict().items())


class Collecting(nn.Module):
    """Network whose hook keeps the map in one place, as many backbones do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kept = nn.Conv2d(3, 8, 4, stride=4), {}
        self.conv.register_forward_hook(lambda module, given, result: self.kept.update(map=result))

    def forward(self, x: Tensor) -> Tensor:
        self.conv(x)
        torch.mm(torch.rand(200, 200), torch.rand(200, 200))  # time for another thread
        return self.kept.pop("map")


@pytest.mark.parametrize("kind", ["hooks", "timm"])
def test_backbones_that_collect_maps_with_hooks_serve_threads(kind: str) -> None:
    features = (
        FrozenFeatures(Collecting(), (8,), (4,))
        if kind == "hooks"
        else TimmFeatures("pit_ti_224", "random", layers=(0,), image_size=224)
    )
    given = batches(30) if kind == "hooks" else [torch.rand(1, 3, 224, 224) for _ in range(3)]
    expected = [features(x)[0] for x in given]
    assert all(map(torch.equal, in_threads(lambda x: features(x)[0], given), expected))


def test_reading_a_flow_with_statistics_changes_nothing() -> None:
    from semflow.flows import AffineCoupling
    from semflow.nn import InverseGammaVariance, StatisticsNetwork

    model = with_statistics(AffineCoupling(4), InverseGammaVariance(StatisticsNetwork(filters=8, stride=4)))
    maps, image = torch.rand(2, 4, 8, 8), torch.rand(2, 3, 32, 32)
    expected = model.eval().anomaly_map(maps, image=image)
    before = state(model.train())
    found = in_threads(lambda x: model.anomaly_map(x, image=image), [maps] * 6)
    assert all(torch.equal(x, expected) for x in found)
    assert_unchanged(model, before)


def test_copies_for_reading_share_all_tensors() -> None:
    detector = make_detector().train()
    with in_eval_mode(detector) as still:
        assert still is not detector
        assert not any(module.training for module in still.modules())
        for (name, x), y in zip(detector.named_parameters(), still.parameters(), strict=True):
            assert x is y, name
        for (name, x), y in zip(detector.named_buffers(), still.buffers(), strict=True):
            assert x is y, name
    with in_eval_mode(detector.eval()) as same:
        assert same is detector


def test_calling_a_detector_predicts_with_gradients() -> None:
    detector, x = make_detector(), batches(1)[0]
    expected, found = detector.predict(x), detector(x)
    assert torch.equal(found.score, expected.score)
    assert found.score.requires_grad
    assert not expected.score.requires_grad


def test_computing_metrics_twice_gives_the_same() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[1, :3, :3] = True
    scores = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    for accumulator in (PixelAccumulator(), HistogramAccumulator()):
        accumulator.update(scores, mask)
        first = accumulator.compute()
        assert accumulator.compute() == first
        accumulator.update(scores, mask)
        assert accumulator.compute() is not first
    whole = ImageAccumulator()
    whole.update(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 0]))
    assert whole.compute() == whole.compute()


def test_samples_are_not_changed_by_evaluation() -> None:
    detector = make_detector()
    detector.fit_score(batches(4))
    samples = [Sample(torch.rand(3, 32, 32), k % 2, torch.zeros(32, 32, dtype=torch.bool), str(k)) for k in range(4)]
    samples[1].anomaly_mask[:4] = samples[3].anomaly_mask[:4] = True
    kept = copy.deepcopy(samples)
    evaluate(detector, samples)
    for sample, before in zip(samples, kept, strict=True):
        assert torch.equal(sample.image, before.image)
        assert torch.equal(sample.anomaly_mask, before.anomaly_mask)


@pytest.mark.parametrize("entered_before", [True, False])
def test_a_switch_that_ends_while_modes_are_looked_at_is_noticed(
    entered_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Sequential(Locked(), nn.BatchNorm1d(4)).train()
    trains, entered, ended = modes._trains, threading.Event(), threading.Event()

    def switch() -> None:
        with switched_to_eval(module):
            entered.set()
            assert ended.wait(60)

    switching = threading.Thread(target=switch)

    def look(given: nn.Module) -> bool:
        if not ended.is_set():
            if not entered_before:
                switching.start()
                assert entered.wait(60)
            found = trains(given)
            ended.set()
            switching.join(60)
            return found
        return trains(given)

    if entered_before:
        switching.start()
        assert entered.wait(60)
    monkeypatch.setattr(modes, "_trains", look)
    with in_eval_mode(module) as still:
        assert not any(part.training for part in still.modules())
    assert all(part.training for part in module.modules())
