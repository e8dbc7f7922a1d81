"""AUROC, AP and F1-max compared with scikit-learn, and their invariances."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.devices import DEVICE
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
    """Draw scores and labels with at least one of each label."""
    pairs = draw(st.lists(st.tuples(values, st.booleans()), max_size=40))
    pairs += [(draw(values), True), (draw(values), False)]
    pairs = draw(st.permutations(pairs))
    return np.array([s for s, _ in pairs]), np.array([label for _, label in pairs])


def reference_f1(scores, labels):
    """Return the highest F1 of scikit-learn's curve and its highest threshold."""
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(labels, scores)
    precision, recall = precision[:-1], recall[:-1]
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    return f1.max(), thresholds[f1 >= f1.max() - 1e-12].max()


def check_against_sklearn(scores, labels):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # differences of huge scores overflow in scikit-learn
        assert auroc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-9)
        expected = sklearn_metrics.average_precision_score(labels, scores)
        assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-9)
        f1, threshold = reference_f1(scores, labels)
    assert f1_max(scores, labels) == pytest.approx(f1, abs=1e-9)
    assert f1_max_threshold(scores, labels) == threshold


@given(scored())
def test_ranking_metrics_equal_sklearn_for_float64(case):
    check_against_sklearn(*case)


@given(scored())
def test_ranking_metrics_equal_sklearn_for_float32(case):
    scores, labels = case
    check_against_sklearn(scores.astype(np.float32), labels)


@given(scored(st.just(0.25)))
def test_ranking_metrics_of_constant_scores(case):
    scores, labels = case
    assert auroc(scores, labels) == 0.5
    assert average_precision(scores, labels) == pytest.approx(labels.mean())
    check_against_sklearn(scores, labels)


@given(scored())
def test_auroc_is_the_mann_whitney_statistic(case):
    scores, labels = case
    gap = np.sign(scores[labels][:, None] - scores[~labels][None, :])
    assert auroc(scores, labels) == pytest.approx(((gap + 1) / 2).mean(), abs=1e-12)


@given(scored())
def test_ranking_metrics_depend_only_on_ranks(case):
    scores, labels = case
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)
    assert auroc(scores, ~labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)
    # Ranks are a strictly monotonic transform without rounding.
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
def test_f1_max_threshold_reaches_f1_max(case):
    scores, labels = case
    found = scores >= f1_max_threshold(scores, labels)
    assert 2 * (found & labels).sum() / (found.sum() + labels.sum()) == pytest.approx(f1_max(scores, labels), abs=1e-12)


def test_ranking_metrics_equal_hand_computed_values():
    scores, labels = [0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 1, 0]
    assert auroc(scores, labels) == pytest.approx(4 / 6)
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert f1_max(scores, labels) == pytest.approx(6 / 7)
    assert f1_max_threshold(scores, labels) == 0.6


def test_f1_max_threshold_is_the_highest_of_equals():
    # At 3.0 one of one is anomalous, F1 2 / (1 + 2); at 1.0 two of four, F1 4 / (4 + 2).
    assert f1_max_threshold([3.0, 2.0, 2.0, 1.0], [1, 0, 0, 1]) == 3.0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int16, torch.int64]
)
def test_ranking_metrics_accept_every_dtype(dtype):
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


def test_auroc_does_not_round_large_integers():
    scores = torch.tensor([2**60, 2**60 + 1])  # equal in float64
    assert auroc(scores, torch.tensor([0, 1])) == 1.0


def test_ranking_metrics_accept_gradients_layouts_and_lists():
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(24).reshape(4, 6) % 3 == 0
    expected = image_metrics(scores.detach().numpy(), labels.numpy())
    assert image_metrics(scores, labels) == expected
    assert image_metrics(scores.t(), labels.t()) == expected
    assert image_metrics(scores.flatten().tolist(), labels.flatten().tolist()) == expected
    assert image_metrics(list(scores.detach().flatten()), list(labels.flatten())) == expected


@pytest.mark.cuda
def test_auroc_accepts_cuda_tensors():
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.8], device=DEVICE), torch.tensor([0, 0, 1, 1], device=DEVICE)
    assert auroc(scores, labels) == auroc(scores, labels.cpu()) == 0.875


def test_ranking_metrics_accept_infinities():
    scores = np.array([-np.inf, 0.0, np.inf, np.inf])
    labels = np.array([0, 1, 1, 0])
    for metric in METRICS:
        assert metric(scores, labels) == metric(np.array([0, 1, 2, 2]), labels)
    assert f1_max_threshold(np.array([0.0, np.inf]), np.array([0, 1])) == np.inf


def test_ranking_metrics_do_not_change_arguments():
    scores, labels = np.array([3.0, 1.0, 2.0]), np.array([1, 0, 1])
    image_metrics(scores, labels)
    assert scores.tolist() == [3.0, 1.0, 2.0]
    assert labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("metric", [*METRICS, f1_max_threshold, image_metrics])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 0], "labels must .* got 2 normal and 0 anomalous"),
        ([0.1, 0.2], [1, 1], "labels must .* got 0 normal and 2 anomalous"),
        ([], [], "got 0 normal and 0 anomalous"),
        ([0.1, float("nan")], [0, 1], "scores must .* got 1 NaN"),
        ([0.1, 0.2], [0, 1, 1], r"scores and labels must .* \(2,\) and \(3,\)"),
        (np.zeros((2, 1)), [0, 1], r"\(2, 1\) and \(2,\)"),
        ([0.1, 0.2], [0, -1], "labels must .* got -1"),
        ([0.1, 0.2], [0, 255], "labels must .* got 255"),
        ([0.1, 0.2], [0.0, float("nan")], "labels must .* got nan"),
        ([0.1, 0.2j], [0, 1], "scores must have real numbers"),
        (["a", "b"], [0, 1], "scores must have real numbers"),
        ([[0.1, 0.2], [0.3]], [0, 1], "scores must be an array of numbers"),
        (None, [0, 1], "scores must have real numbers"),
    ],
)
def test_ranking_metrics_reject_invalid_input(metric, scores, labels, message):
    with pytest.raises(ShapeError, match=message) as caught:
        metric(scores, labels)
    assert "\n" not in str(caught.value)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 50]))
def test_ranking_metrics_equal_sklearn_for_3000_scores(seed, levels):
    rng = np.random.default_rng(seed)
    labels = rng.random(3000) < 0.05
    scores = rng.normal(size=3000) + labels
    check_against_sklearn(np.round(scores * levels) / levels if levels < 50 else scores.astype(np.float32), labels)
