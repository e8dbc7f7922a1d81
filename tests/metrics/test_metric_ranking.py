"""AUROC, AP and F1-max against scikit-learn, and the laws they keep."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semflow.errors import ShapeError
from semflow.metrics import auroc, average_precision, f1_max, f1_max_threshold, image_metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")

METRICS = (auroc, average_precision, f1_max)

finite = st.one_of(
    st.floats(-10, 10),
    st.integers(-2, 2).map(float),  # ties
    st.sampled_from([0.0, -0.0, 1e30, -1e30, 3e38, 1.0, 1.0 + 2**-52]),
)


@st.composite
def scored(draw, values=finite):
    """Scores and labels with at least one of each label."""
    pairs = draw(st.lists(st.tuples(values, st.booleans()), max_size=40))
    pairs += [(draw(values), True), (draw(values), False)]
    pairs = draw(st.permutations(pairs))
    return np.array([s for s, _ in pairs]), np.array([label for _, label in pairs])


def reference_f1(scores, labels):
    """The highest F1 of scikit-learn's curve and the highest threshold that reaches it."""
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(labels, scores)
    precision, recall = precision[:-1], recall[:-1]
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    return f1.max(), thresholds[f1 >= f1.max() - 1e-12].max()


def check_against_sklearn(scores, labels):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # differences of huge scores overflow in there
        assert auroc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-9)
        expected = sklearn_metrics.average_precision_score(labels, scores)
        assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-9)
        f1, threshold = reference_f1(scores, labels)
    assert f1_max(scores, labels) == pytest.approx(f1, abs=1e-9)
    assert f1_max_threshold(scores, labels) == threshold


@given(scored())
def test_sklearn_float64(case):
    check_against_sklearn(*case)


@given(scored())
def test_sklearn_float32(case):
    scores, labels = case
    check_against_sklearn(scores.astype(np.float32), labels)


@given(scored(st.just(0.25)))
def test_constant_scores(case):
    scores, labels = case
    assert auroc(scores, labels) == 0.5
    assert average_precision(scores, labels) == pytest.approx(labels.mean())
    check_against_sklearn(scores, labels)


@given(scored())
def test_mann_whitney_by_all_pairs(case):
    scores, labels = case
    gap = np.sign(scores[labels][:, None] - scores[~labels][None, :])
    assert auroc(scores, labels) == pytest.approx(((gap + 1) / 2).mean(), abs=1e-12)


@given(scored())
def test_laws(case):
    scores, labels = case
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)
    assert auroc(scores, ~labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)
    # A strictly monotone transform that rounding cannot merge: the rank of each distinct score.
    ranks = np.unique(scores, return_inverse=True)[1].reshape(-1)
    order = np.random.default_rng(0).permutation(len(scores))
    for metric in METRICS:
        value = metric(scores, labels)
        assert type(value) is float
        assert 0 <= value <= 1
        assert metric(ranks, labels) == value
        assert metric(np.exp2(ranks.astype(np.float64)), labels) == value
        assert metric(scores[order], labels[order]) == value
    assert image_metrics(scores, labels) == tuple(metric(scores, labels) for metric in METRICS)


@given(scored())
def test_threshold_reaches_f1_max(case):
    scores, labels = case
    found = scores >= f1_max_threshold(scores, labels)
    assert 2 * (found & labels).sum() / (found.sum() + labels.sum()) == pytest.approx(f1_max(scores, labels), abs=1e-12)


def test_hand_computed():
    scores, labels = [0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 1, 0]
    assert auroc(scores, labels) == pytest.approx(4 / 6)
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert f1_max(scores, labels) == pytest.approx(6 / 7)
    assert f1_max_threshold(scores, labels) == 0.6


def test_highest_of_equal_thresholds():
    # One of one at 3.0 has F1 2 / (1 + 2); two of four at 1.0 has 4 / (4 + 2).
    assert f1_max_threshold([3.0, 2.0, 2.0, 1.0], [1, 0, 0, 1]) == 3.0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int16, torch.int64]
)
def test_torch_types(dtype):
    scores = torch.tensor([[5, 1, 3], [3, 0, 7]]).to(dtype)
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    expected = (8.5 / 9, 1.0 / 3 + 1.0 / 3 + 0.75 / 3, 6 / 7)
    for label_type in (torch.bool, torch.uint8, torch.int64, torch.float32):
        assert image_metrics(scores, labels.to(label_type)) == pytest.approx(expected)
        assert image_metrics(scores.numpy() if dtype != torch.bfloat16 else scores, labels.numpy()) == pytest.approx(
            expected
        )
    assert f1_max_threshold(scores, labels) == 3.0
    assert (scores >= f1_max_threshold(scores, labels)).sum() == 4


def test_large_integers_are_not_rounded():
    scores = torch.tensor([2**60, 2**60 + 1])  # equal in float64
    assert auroc(scores, torch.tensor([0, 1])) == 1.0


def test_gradients_and_layouts_do_not_matter():
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(24).reshape(4, 6) % 3 == 0
    expected = image_metrics(scores.detach().numpy(), labels.numpy())
    assert image_metrics(scores, labels) == expected
    assert image_metrics(scores.t(), labels.t()) == expected
    assert image_metrics(scores.flatten().tolist(), labels.flatten().tolist()) == expected
    assert image_metrics(list(scores.detach().flatten()), list(labels.flatten())) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.8], device="cuda"), torch.tensor([0, 0, 1, 1], device="cuda")
    assert auroc(scores, labels) == auroc(scores, labels.cpu()) == 0.875


def test_infinities_have_a_rank():
    scores = np.array([-np.inf, 0.0, np.inf, np.inf])
    labels = np.array([0, 1, 1, 0])
    for metric in METRICS:
        assert metric(scores, labels) == metric(np.array([0, 1, 2, 2]), labels)
    assert f1_max_threshold(np.array([0.0, np.inf]), np.array([0, 1])) == np.inf


def test_arguments_stay_as_they_are():
    scores, labels = np.array([3.0, 1.0, 2.0]), np.array([1, 0, 1])
    image_metrics(scores, labels)
    assert scores.tolist() == [3.0, 1.0, 2.0]
    assert labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("metric", [*METRICS, f1_max_threshold, image_metrics])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 0], "labels: .* got 2 normal and 0 anomalous"),
        ([0.1, 0.2], [1, 1], "labels: .* got 0 normal and 2 anomalous"),
        ([], [], "got 0 normal and 0 anomalous"),
        ([0.1, float("nan")], [0, 1], "scores: .* 1 NaN"),
        ([0.1, 0.2], [0, 1, 1], r"scores and labels: .* \(2,\) and \(3,\)"),
        (np.zeros((2, 1)), [0, 1], r"\(2, 1\) and \(2,\)"),
        ([0.1, 0.2], [0, -1], "labels: .* got -1"),
        ([0.1, 0.2], [0, 255], "labels: .* got 255"),
        ([0.1, 0.2], [0.0, float("nan")], "labels: .* got nan"),
        ([0.1, 0.2j], [0, 1], "scores: expected real numbers"),
        (["a", "b"], [0, 1], "scores: expected real numbers"),
        ([[0.1, 0.2], [0.3]], [0, 1], "scores: expected a tensor or an array"),
        (None, [0, 1], "scores: expected real numbers"),
    ],
)
def test_bad_input(metric, scores, labels, message):
    with pytest.raises(ShapeError, match=message) as caught:
        metric(scores, labels)
    assert "\n" not in str(caught.value)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 50]))
def test_sklearn_at_some_thousand_scores(seed, levels):
    rng = np.random.default_rng(seed)
    labels = rng.random(3000) < 0.05
    scores = rng.normal(size=3000) + labels
    check_against_sklearn(np.round(scores * levels) / levels if levels < 50 else scores.astype(np.float32), labels)
