"""The space of a search: which values each key of the training may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from pancreas_mtl.errors import UsageError

Space = dict[str, BaseDistribution]
RANGE_KEYS = {"low", "high", "log", "step"}


def read_space(section: Mapping[str, Any]) -> Space:
    """Read `sweep.space`: by key a list of choices, or a range `{low, high, log, step}`.

    A range whose ends are whole numbers is searched in whole numbers; `log: true` searches it
    evenly in the logarithm; `step` is the distance of the values tried.

    Raises:
        UsageError: an entry cannot be understood.
    """
    if not section:
        raise UsageError(
            "sweep.space is empty: give ranges or choices to some keys of the training"
        )
    return {key: _distribution(key, values) for key, values in section.items()}


def suggest(trial: Trial, space: Space) -> dict[str, str]:
    """The values of one trial as they are written on the command line of the training."""
    return {key: as_text(_value(trial, key, values)) for key, values in space.items()}


def as_text(value: Any) -> str:
    """A value as Hydra reads it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(trial: Trial, key: str, values: BaseDistribution) -> Any:
    if isinstance(values, FloatDistribution):
        return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(key, values.low, values.high, step=values.step, log=values.log)
    if isinstance(values, CategoricalDistribution):
        return trial.suggest_categorical(key, values.choices)
    raise TypeError(f"{key}: {values}")


def _distribution(key: str, values: Any) -> BaseDistribution:
    if isinstance(values, list) and values:
        return CategoricalDistribution([_choice(value) for value in values])
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= RANGE_KEYS:
        raise UsageError(
            f"sweep.space.{key}={values}: give a list of choices, or low and high, and if wanted "
            "log: true or step"
        )
    whole = all(isinstance(values[end], int) for end in ("low", "high"))
    try:
        if whole:
            return IntDistribution(**{"step": 1, **values})
        return FloatDistribution(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"sweep.space.{key}={dict(values)}: {error}") from error


def _choice(value: Any) -> Any:
    """A choice as Optuna can store it: lists become the text that Hydra reads as that list."""
    return f"[{','.join(map(as_text, value))}]" if isinstance(value, list) else value
