from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torchmetrics.functional.classification import multiclass_calibration_error

from pancreas_mtl.metrics.subtype import (
    aurocs,
    balanced_accuracy,
    balanced_probability,
    brier,
    confusion_matrix,
    ece,
    f1_scores,
    macro_f1,
    mcc,
    mean_auroc,
    precisions,
    recalls,
    reliability,
)
from pancreas_mtl.types import UNKNOWN

LABELS = [0, 1, 2]


def answers(seed: int, num_cases: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """References and probabilities that know a little of them, some of them equal."""
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 3, num_cases)
    logits = rng.normal(size=(num_cases, 3)) + 1.2 * np.eye(3)[references]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities[: num_cases // 4] = probabilities[0]
    return references, probabilities


@pytest.mark.parametrize("seed", range(5))
def test_counts_agree_with_sklearn(seed):
    references, probabilities = answers(seed)
    predictions = probabilities.argmax(axis=1)
    matrix = confusion_matrix(references, predictions)
    options = {"labels": LABELS, "average": None, "zero_division": 0}
    expected = sklearn.precision_recall_fscore_support(references, predictions, **options)
    np.testing.assert_array_equal(
        matrix[:, :3], sklearn.confusion_matrix(references, predictions, labels=LABELS)
    )
    np.testing.assert_allclose(precisions(matrix), expected[0])
    np.testing.assert_allclose(recalls(matrix), expected[1])
    np.testing.assert_allclose(f1_scores(matrix), expected[2])
    assert macro_f1(references, predictions) == pytest.approx(expected[2].mean())
    accuracy = sklearn.balanced_accuracy_score(references, predictions)
    assert balanced_accuracy(matrix) == pytest.approx(accuracy)
    assert mcc(matrix) == pytest.approx(sklearn.matthews_corrcoef(references, predictions))


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_agree_with_sklearn_and_torchmetrics(seed):
    references, probabilities = answers(seed)
    area = sklearn.roc_auc_score(references, probabilities, multi_class="ovr", average="macro")
    assert mean_auroc(references, probabilities) == pytest.approx(area)
    one_hot = np.eye(3)[references]
    parts = [sklearn.brier_score_loss(one_hot[:, s], probabilities[:, s]) for s in LABELS]
    assert brier(references, probabilities) == pytest.approx(sum(parts))
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(references), num_classes=3, n_bins=10
    )
    assert ece(references, probabilities) == pytest.approx(float(expected), abs=1e-6)


def test_macro_f1_counts_absent_subtypes():
    """One subtype alone, recognised always: a third. The published attempts' collapse: .196."""
    assert macro_f1(np.array([1, 1]), np.array([1, 1])) == pytest.approx(1 / 3)
    references = np.repeat([0, 1, 2], [9, 15, 12])
    assert macro_f1(references, np.full(36, 1)) == pytest.approx(0.196, abs=5e-4)
    assert macro_f1(references, np.full(36, 2)) == pytest.approx(0.167, abs=5e-4)


def test_a_case_without_prediction_is_wrong_for_its_subtype_alone():
    references = np.array([0, 0, 1, 2])
    matrix = confusion_matrix(references, np.array([0, UNKNOWN, 1, 2]))
    np.testing.assert_array_equal(matrix[:, 3], [1, 0, 0])
    np.testing.assert_allclose(f1_scores(matrix), [2 / 3, 1, 1])
    np.testing.assert_allclose(recalls(matrix), [0.5, 1, 1])
    np.testing.assert_allclose(precisions(matrix), [1, 1, 1])
    assert mcc(matrix) == pytest.approx(
        sklearn.matthews_corrcoef(references, [0, 3, 1, 2])  # as if it were a fourth subtype
    )


def test_absent_subtypes_leave_the_means_of_recall_and_auroc():
    references = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.2, 0.7, 0.1], [0.4, 0.5, 0.1]])
    matrix = confusion_matrix(references, probabilities.argmax(axis=1))
    np.testing.assert_allclose(recalls(matrix), [0.5, 1, np.nan])
    assert balanced_accuracy(matrix) == 0.75
    np.testing.assert_allclose(aurocs(references, probabilities), [0.75, 1, np.nan])
    assert mean_auroc(references, probabilities) == pytest.approx(0.875)


def test_one_subtype_alone_has_no_auroc_and_no_correlation():
    references = np.array([2, 2, 2])
    probabilities = np.full((3, 3), 1 / 3)
    assert np.isnan(mean_auroc(references, probabilities))
    assert mcc(confusion_matrix(references, references)) == 0


def test_leading_axes_are_sets_of_their_own():
    sets = [answers(seed) for seed in range(4)]
    references = np.stack([one for one, _ in sets])
    probabilities = np.stack([two for _, two in sets])
    matrices = confusion_matrix(references, probabilities.argmax(axis=-1))
    for number, (one, two) in enumerate(sets):
        matrix = confusion_matrix(one, two.argmax(axis=1))
        assert mean_auroc(references, probabilities)[number] == mean_auroc(one, two)
        for metric in (f1_scores, recalls, precisions, balanced_accuracy, mcc):
            np.testing.assert_array_equal(metric(matrices)[number], metric(matrix))


def test_calibration_by_hand():
    """Two cases in bin (.4, .5], one right; two in (.9, 1], both right."""
    references = np.array([0, 1, 2, 2])
    probabilities = np.array(
        [[0.5, 0.3, 0.2], [0.42, 0.4, 0.18], [0.02, 0.02, 0.96], [0.0, 0.0, 1.0]]
    )
    bins = reliability(references, probabilities)
    assert [one.n_cases for one in bins] == [2, 2]
    assert [one.accuracy for one in bins] == [0.5, 1]
    assert [one.confidence for one in bins] == pytest.approx([0.46, 0.98])
    assert ece(references, probabilities) == pytest.approx((0.04 + 0.02) / 2)


def test_brier_spans_0_to_2():
    references = np.array([0, 1])
    assert brier(references, np.eye(3)[[0, 1]]) == 0
    assert brier(references, np.eye(3)[[1, 2]]) == 2
    assert brier(references, np.full((2, 3), 1 / 3)) == pytest.approx(2 / 3)


def test_balanced_probability_weighs_subtypes_equally():
    references = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1, 0.0]] * 3 + [[0.7, 0.3, 0.0]])
    assert balanced_probability(references, probabilities) == pytest.approx(0.6)
