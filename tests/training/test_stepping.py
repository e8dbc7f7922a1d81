"""Optimizer steps on groups of locations and on whole maps, and kept feature maps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import joint_training as joint
from semflow.bases import StandardNormal
from semflow.detectors import Detector
from semflow.errors import ConfigError, DataError, TrainingError
from semflow.features import FrozenFeatures
from semflow.flows import GlobalAffine, PyramidSequence, ScaleWise, coupling_stack
from semflow.functional import take_locations
from semflow.nn import ConvSubnet, SinusoidalPosition2d
from semflow.training import TrainingConfig, fit
from semflow.training.cache import NormalImages
from semflow.training.loading import batches
from semflow.training.stepping import adam, train_on_batch
from semflow.training.watching import Watch

CPU = torch.device("cpu")


def stack(images):
    return torch.stack([s.image for s in images])


def masks_of(count: int) -> torch.Tensor:
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[1, 4:20, 8:24] = True
    return masks


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=20)
def test_location_flow_of_a_group_equals_that_of_whole_maps(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    flow = coupling_stack(5, 2, context_channels=8)
    x = torch.randn(3, 5, 4, 6, generator=generator)
    code = SinusoidalPosition2d(8)(4, 6)
    z, log_det = flow(x, code)
    group = torch.randperm(3 * 4 * 6, generator=generator)[:17]
    z_group, log_det_group = flow(take_locations(x, group), code.take(group))
    torch.testing.assert_close(z_group, take_locations(z, group), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_det_group, take_locations(log_det, group), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        code.take(group)[:, 0], take_locations(code.dense().expand(3, -1, -1, -1), group)[0, :, 0]
    )


def test_one_group_of_all_locations_equals_a_step_on_whole_maps(build, images) -> None:
    """Plain gradient descent, whose steps are the gradients of flows and head."""
    changes = []
    for locations in (None, 10**6):
        detector = build().train()
        before = [p.detach().clone() for p in detector.trainable()]
        optimizer = torch.optim.SGD(detector.trainable(), lr=1e-3)
        training = TrainingConfig(locations=locations)
        train_on_batch(detector, optimizer, training, stack(images[:4]), masks_of(4))
        changes.append([p.detach() - q for p, q in zip(detector.trainable(), before, strict=True)])
    for (name, _), whole, group in zip(build().flows.named_parameters(), *changes, strict=False):
        torch.testing.assert_close(group, whole, rtol=1e-3, atol=1e-7, msg=name)
    head = len(list(build().head.parameters()))
    assert all((c != 0).any() for c in changes[0][-head:])
    for whole, group in zip(changes[0], changes[1], strict=True):
        torch.testing.assert_close(group, whole, rtol=1e-3, atol=1e-7)


def test_groups_hold_every_location_once(build, images) -> None:
    """With a learning rate of 0 the mean over groups is the loss of whole maps."""
    detector = build(synthesis=False).train()
    batch = stack(images[:3])
    seen = []
    objective = type(detector.objective).__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(detector.objective),
            "__call__",
            lambda self, z, *rest: (seen.append(z.shape[-1]), objective(self, z, *rest))[1],
        )
        still = torch.optim.SGD(detector.trainable(), lr=0.0)
        terms = train_on_batch(detector, still, TrainingConfig(locations=50), batch)
    assert seen == [50, 50, 50, 42, 48]  # 3 x 8 x 8 locations of the finer map, 3 x 4 x 4 of the coarser
    with torch.no_grad():
        whole = torch.stack(list(build(synthesis=False).train().loss(batch)))
    torch.testing.assert_close(terms, whole, rtol=1e-4, atol=1e-5)


def test_groups_depend_on_the_seed(build, images) -> None:
    def train(seed):
        detector = build(synthesis=False)
        training = TrainingConfig(epochs=2, batch_size=4, locations=32)
        return fit(detector, images, training, seed=seed, progress=False).state_dict()

    a, b, c = train(0), train(0), train(1)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_groups_of_locations_require_location_flows() -> None:
    features = FrozenFeatures(torch.nn.Conv2d(3, 4, 4, stride=4), channels=(4,), strides=(4,))
    training = TrainingConfig(epochs=1, locations=8)
    detector = Detector(features, [coupling_stack(4, 1, (ConvSubnet,))], StandardNormal())
    with pytest.raises(ConfigError, match=r"each location on its own to train on 8 .* with events sample"):
        fit(detector, [], training, progress=False)
    pyramid = PyramidSequence([ScaleWise([GlobalAffine(4)]), ScaleWise([GlobalAffine(4)])])
    with pytest.raises(ConfigError, match=r"flows must be one per scale .* but got PyramidSeq"):
        fit(Detector(features, pyramid, StandardNormal()), [], training, progress=False)
    with pytest.raises(ConfigError, match="locations must be at least 1"):
        TrainingConfig(locations=0)
    with pytest.raises(ConfigError, match="clip must be positive"):
        TrainingConfig(clip=0.0)


def test_clipping_limits_the_norm_of_a_step(build, images) -> None:
    detector = build(synthesis=False).train()
    before = torch.cat([p.detach().flatten().clone() for p in detector.trainable()])
    training = TrainingConfig(clip=1e-3)
    train_on_batch(detector, torch.optim.SGD(detector.trainable(), lr=1.0), training, stack(images[:4]))
    moved = torch.cat([p.detach().flatten() for p in detector.trainable()]) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_maps_are_computed_once_and_indexed_by_image(build, images) -> None:
    detector = build()
    calls = []

    def features(x):
        calls.append(len(x))
        return detector.features(x)

    normal = NormalImages(features, batches(images, 4), CPU)
    assert normal.maps([0]) is None
    first = list(normal)
    second = list(normal)
    assert calls == [4, 4, 2]
    for (x, maps, indices, _), (again, kept, same, _) in zip(first, second, strict=True):
        assert torch.equal(indices, same)
        assert torch.equal(x, again)
        assert all(torch.equal(a, b) for a, b in zip(maps, kept, strict=True))
    for kept, own in zip(normal.maps([7, 2]), detector.features(stack([images[7], images[2]])), strict=True):
        torch.testing.assert_close(kept, own, rtol=1e-5, atol=1e-6)


def test_maps_beyond_the_limit_are_not_kept(build, images) -> None:
    normal = NormalImages(build().features, batches(images, 4), CPU, limit=1000)
    normal.fill()
    assert len(list(normal)) == 3
    assert normal.maps([0]) is None


def test_kept_maps_do_not_change_training(build, images) -> None:
    kept, anew = (
        fit(build(synthesis=False), images, epochs=2, cache_bytes=limit, progress=False) for limit in (2**31, 0)
    )
    for (name, a), b in zip(kept.state_dict().items(), anew.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_step_with_infinite_loss_is_reported_and_skipped(build, images) -> None:
    detector = build().train()
    before = [p.detach().clone() for p in detector.trainable()]
    maps = [x.clone() for x in detector.features(stack(images[:2]))]
    maps[1][0, 0, 0, 0] = float("inf")
    watch, optimizer = Watch(), adam(detector, detector.provenance.training)
    watch.begin(" of epoch 7", steps=41)
    with pytest.raises(TrainingError, match=r"^loss must be finite, but got (nan|inf) at step 42 of epoch 7"):
        train_on_batch(detector, optimizer, detector.provenance.training, stack(images[:2]), None, maps, watch=watch)
    assert all(torch.equal(p, q) for p, q in zip(detector.trainable(), before, strict=True))


@pytest.mark.parametrize("every", [1, 3, 32])
def test_watch_names_the_first_step_that_is_not_finite(every) -> None:
    weight = torch.ones(4, requires_grad=True)

    def take(watch: Watch, *norms: float) -> None:
        for norm in norms:
            weight.grad = torch.full((4,), norm / 2)
            watch.step(torch.tensor(0.5), [weight])
        watch.check()

    with pytest.raises(TrainingError, match=r"^gradient must .* but got inf at step 5, with a loss of 0\.5$"):
        take(Watch(clip=3.0, every=every), 2.0, 4.0, 1.0, 8.0, float("inf"), float("nan"), 1.0)
    watch = Watch(clip=3.0, every=every)
    for norm in (2.0, 4.0, 1.0, 8.0):
        take(watch, norm)
        assert weight.grad.norm().item() == pytest.approx(min(norm, 3.0), rel=1e-5)
    watch.check()
    assert (watch.steps, watch.clipped, watch.largest) == (4, 2, 8.0)


def test_image_with_nan_is_named() -> None:
    images = joint.images(6)
    images[4].image[1, 2, 3] = float("nan")
    with pytest.raises(DataError, match=r"^4\.png must have finite pixels"):
        joint.train("samples", dataset=images)


@given(st.floats(1e-3, 1e3))
def test_default_clip_leaves_smaller_gradients_unchanged(norm) -> None:
    weight = torch.zeros(7, requires_grad=True)
    weight.grad = torch.linspace(-1, 1, 7) * norm
    before = weight.grad.clone()
    Watch(TrainingConfig().clip).step(torch.tensor(0.0), [weight])
    assert torch.equal(weight.grad, before)
