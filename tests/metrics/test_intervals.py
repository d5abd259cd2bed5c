from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pancreas_mtl.metrics.intervals import Estimate, bootstrap_ci, mean, resampled_indices
from pancreas_mtl.metrics.subtype import confusion_matrix, f1_scores


def mean_f1(references, predictions):
    return f1_scores(confusion_matrix(references, predictions)).mean(axis=-1)


def test_agrees_with_scipy():
    values = np.random.default_rng(0).beta(5, 2, 40)
    ours = bootstrap_ci(mean, values, resamples=5_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5_000, rng=0)
    assert ours.mean == values.mean()
    assert ours.ci95 == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)


def test_of_a_normal_mean_it_is_two_standard_errors():
    values = np.random.default_rng(1).normal(size=100)
    low, high = bootstrap_ci(mean, values, resamples=5_000).ci95
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.07)


def test_it_covers_the_truth_in_about_95_of_100_sets():
    rng = np.random.default_rng(2)
    intervals = [bootstrap_ci(mean, rng.normal(size=50), resamples=300).ci95 for _ in range(200)]
    covered = sum(low <= 0 <= high for low, high in intervals)
    assert 0.90 < covered / 200 < 0.98


def test_the_seed_decides():
    values = np.random.default_rng(3).random(20)
    assert bootstrap_ci(mean, values, seed=1) == bootstrap_ci(mean, values, seed=1)
    assert bootstrap_ci(mean, values, seed=1) != bootstrap_ci(mean, values, seed=2)


def test_strata_keep_their_size():
    strata = np.repeat([0, 1, 2], [3, 5, 1])
    drawn = resampled_indices(9, strata=strata, resamples=50, seed=0)
    for subtype in range(3):
        np.testing.assert_array_equal(
            (strata[drawn] == subtype).sum(axis=1), (strata == subtype).sum()
        )
    assert len(np.unique(drawn[:, :3])) == 3


def test_macro_f1_of_36_cases_has_a_standard_deviation_of_about_8_hundredths():
    """As known of the task: so the interval is about 0.3 wide."""
    rng = np.random.default_rng(4)
    references = np.repeat([0, 1, 2], [9, 15, 12])
    predictions = np.where(rng.random(36) < 0.6, references, rng.integers(0, 3, 36))
    low, high = bootstrap_ci(mean_f1, references, predictions, strata=references).ci95
    assert (high - low) / (2 * 1.96) == pytest.approx(0.077, abs=0.015)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Estimate(None, None)),
        ([0.5], Estimate(0.5, None)),
        ([0.5, 0.5], Estimate(0.5, (0.5, 0.5))),
        ([0.5, np.nan], Estimate(None, None)),
    ],
)
def test_degenerate_sets(values, expected):
    assert bootstrap_ci(mean, np.array(values, dtype=float)) == expected


def test_resamples_where_it_is_undefined_are_left_out():
    def mean_of_positive(values):
        count = (values > 0).sum(axis=-1)
        total = np.where(values > 0, values, 0.0).sum(axis=-1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    assert bootstrap_ci(mean_of_positive, np.array([0.0, 0.0, 2.0])).ci95 == (2, 2)


def test_without_a_defined_resample_there_is_no_interval():
    def undefined_in_resamples(values):
        return values.mean(axis=-1) if values.ndim == 1 else np.full(len(values), np.nan)

    found = bootstrap_ci(undefined_in_resamples, np.array([1.0, 3.0]))
    assert found == Estimate(2.0, None)
