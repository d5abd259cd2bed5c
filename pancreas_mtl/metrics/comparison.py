"""Which of two runs is better on the same cases, and what choosing the best of many is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad
from scipy.stats import norm

from pancreas_mtl.metrics.intervals import QUANTILES, Array, Statistic, resampled_indices


@dataclass(frozen=True)
class PairedDifference:
    """First run minus second, over the cases of both.

    `ci95` is None for a single case. `p_value` is two-sided, of the hypothesis that it does not
    matter which run gave which result of a case.
    """

    difference: float
    ci95: tuple[float, float] | None
    p_value: float


def paired_difference(
    statistic: Statistic,
    first: Array,
    second: Array,
    *shared: Array,
    strata: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two runs by a paired permutation test and a paired bootstrap interval.

    The test exchanges the two runs' results in a random half of the cases, so it needs no
    distribution and suits a mean as well as macro-F1. Its smallest value is 1 / (resamples + 1).

    Args:
        statistic: as in `bootstrap_ci`, of one run's results and `shared`.
        first: a result per case, (N,).
        second: those of the other run, in the same order.
        shared: what both have in common, such as the references, (N,) each.
        strata: (N,) groups for the interval.
        resamples: of the test, and of the interval.
        seed: of the random numbers.

    Raises:
        ValueError: no cases.
    """
    num_cases = len(first)
    if num_cases == 0:
        raise ValueError("two runs without a common case cannot be compared")
    observed = float(statistic(first, *shared) - statistic(second, *shared))
    swap = np.random.default_rng(seed).random((resamples, num_cases)) < 0.5
    both = [np.broadcast_to(array, swap.shape) for array in shared]
    exchanged = statistic(np.where(swap, second, first), *both) - statistic(
        np.where(swap, first, second), *both
    )
    extreme = np.abs(exchanged) >= abs(observed) - 1e-12  # equal ones, whatever the rounding
    p_value = (1 + int(np.count_nonzero(extreme))) / (1 + resamples)
    if num_cases == 1:
        return PairedDifference(observed, None, p_value)
    drawn = resampled_indices(num_cases, strata=strata, resamples=resamples, seed=seed)
    again = [array[drawn] for array in shared]
    differences = statistic(first[drawn], *again) - statistic(second[drawn], *again)
    low, high = np.quantile(differences, QUANTILES)
    return PairedDifference(observed, (float(low), float(high)), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests so that one false alarm among all is as rare as in one.

    Holm 1979, https://www.jstor.org/stable/4615733; the order is kept.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    stepwise = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(stepwise))
    result: list[float] = corrected.tolist()
    return result


def optimism_of_best_of(num_candidates: int, standard_error: float) -> float:
    """By how much the best of several candidates overstates itself on the cases that chose it.

    It is the mean of the largest of `num_candidates` standard normal errors, times the standard
    error of one value: 0 for one candidate, 1.54 standard errors for ten. That holds for candidates
    that are equally good and err independently. Errors on the same cases go together, and a truly
    better candidate wins more by right than by luck: then it is less. The value of the chosen one
    on new cases has no such error; that is what test cases are for.
    """

    def density(x: float) -> float:
        rest = norm.cdf(x) ** (num_candidates - 1)
        return float(x * num_candidates * norm.pdf(x) * rest)

    return standard_error * float(quad(density, -10, 10)[0])
