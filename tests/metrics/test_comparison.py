from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pancreas_mtl.metrics.comparison import holm, optimism_of_best_of, paired_difference
from pancreas_mtl.metrics.intervals import mean
from pancreas_mtl.metrics.subtype import confusion_matrix, f1_scores


def mean_f1(predictions, references):
    return f1_scores(confusion_matrix(references, predictions)).mean(axis=-1)


def test_agrees_with_all_exchanges_as_scipy_counts_them():
    rng = np.random.default_rng(0)
    first = rng.beta(5, 2, 9)
    second = first - rng.normal(0.02, 0.05, 9)
    ours = paired_difference(mean, first, second, resamples=10_000)
    theirs = stats.permutation_test(
        (first, second), lambda a, b: np.mean(a - b), permutation_type="samples"
    )
    assert 0.001 < theirs.pvalue < 0.5
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.015)
    assert ours.difference == pytest.approx((first - second).mean())
    low, high = ours.ci95
    assert low < ours.difference < high


def test_all_exchanges_of_few_cases():
    """Three cases, all better by the same: of the 8 exchanges 2 are as extreme."""
    result = paired_difference(mean, np.ones(3), np.zeros(3), resamples=10_000)
    assert result.p_value == pytest.approx(0.25, abs=0.02)
    assert result.ci95 == (1, 1)


def test_equal_runs_do_not_differ():
    values = np.random.default_rng(1).random(12)
    result = paired_difference(mean, values, values)
    assert (result.difference, result.p_value) == (0, 1)


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(2)
    p = [
        paired_difference(mean, *rng.normal(size=(2, 20)), resamples=200, seed=s).p_value
        for s in range(200)
    ]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.045)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


def test_macro_f1_of_two_runs():
    references = np.tile([0, 1, 2], 12)
    better = references.copy()
    worse = np.where(np.arange(36) % 4 == 0, (references + 1) % 3, references)
    result = paired_difference(mean_f1, better, worse, references, strata=references)
    assert result.difference == pytest.approx(0.25)
    assert result.p_value < 0.02
    back = paired_difference(mean_f1, worse, better, references, strata=references)
    assert back.difference == -result.difference


def test_one_case_proves_nothing():
    result = paired_difference(mean, np.array([0.9]), np.array([0.1]))
    assert (result.ci95, result.p_value) == (None, 1)


def test_without_cases_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="without a common case"):
        paired_difference(mean, np.array([]), np.array([]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_the_best_of_ten_gains_about_12_hundredths_of_macro_f1():
    """As known of the task: 36 cases, a standard deviation of .077."""
    assert optimism_of_best_of(10, 0.077) == pytest.approx(0.12, abs=0.002)
    assert optimism_of_best_of(1, 0.077) == pytest.approx(0, abs=1e-9)
    assert optimism_of_best_of(2, 1.0) == pytest.approx(1 / np.sqrt(np.pi))  # closed form


def test_optimism_is_what_a_simulation_shows():
    errors = np.random.default_rng(3).normal(size=(20_000, 5)).max(axis=1).mean()
    assert optimism_of_best_of(5, 1.0) == pytest.approx(errors, abs=0.02)
