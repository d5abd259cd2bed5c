"""How sure a value is: bootstrap intervals over cases.

Cases are what was drawn from the population, so cases are what is drawn again; a subtype's metrics
draw within each subtype, as many as there are. (Efron and Tibshirani 1993, chapter 13.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Statistic = Callable[..., Array]
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A value over cases, with the interval that holds 95% of its resamples; None: undefined."""

    mean: float | None
    ci95: tuple[float, float] | None


def bootstrap_ci(
    statistic: Statistic,
    *arrays: Array,
    strata: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic and its percentile interval; the same seed gives the same interval.

    Args:
        statistic: from arrays with the shapes of `arrays` to a scalar; with a leading axis (R,)
            on each of them, to (R,). NaN stands for undefined.
        arrays: each with the N cases on its first axis.
        strata: (N,) groups; each resample holds as many cases of each as there are.
        resamples: how many.
        seed: of the random numbers.

    Returns:
        Without cases, or where the statistic is undefined, a mean of None. For a single case the
        interval is None, for one case says nothing of others; a stratum of one case never varies.
        Resamples where the statistic is undefined are left out; if it is so in all of them, the
        interval is None.
    """
    num_cases = len(arrays[0])
    value = float(statistic(*arrays)) if num_cases else np.nan
    if np.isnan(value):
        return Estimate(None, None)
    if num_cases == 1:
        return Estimate(value, None)
    drawn = resampled_indices(num_cases, strata=strata, resamples=resamples, seed=seed)
    resampled = statistic(*(array[drawn] for array in arrays))
    if np.isnan(resampled).all():
        return Estimate(value, None)
    low, high = np.nanquantile(resampled, QUANTILES)
    return Estimate(value, (float(low), float(high)))


def resampled_indices(
    num_cases: int, *, strata: Array | None = None, resamples: int, seed: int
) -> npt.NDArray[np.int64]:
    """Draw cases with replacement, (R, N); within strata where they are given."""
    rng = np.random.default_rng(seed)
    if strata is None:
        return rng.integers(0, num_cases, (resamples, num_cases))
    drawn = np.empty((resamples, num_cases), np.int64)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        drawn[:, members] = rng.choice(members, (resamples, len(members)))
    return drawn


def mean(values: Array) -> Array:
    """The statistic of most metrics: the mean over cases, on the last axis."""
    return values.mean(axis=-1)
