"""What is fitted after training on cases held out from it, and how a prediction uses it.

Temperatures turn probabilities p into p^(1/T), normalised (Guo et al. 2017, arXiv:1706.04599).

A conformal set holds every subtype that cannot be excluded: the true one is in it with the stated
coverage, whatever the model is worth, as long as new cases come from where the held-out ones came
from (Vovk et al. 2005). A subtype is excluded where too many held-out cases gave their own subtype
a higher probability; for a single model that is the usual split-conformal set (Sadinle et al. 2019,
doi:10.1080/01621459.2017.1395341). In an ensemble of folds each held-out case is compared with what
the model says that had not seen it (CV+: Romano et al. 2020, arXiv:2006.02544). Such sets usually
have the stated coverage as well, 1 - a; what is guaranteed of them is about 1 - 2a.

The label with the largest score makes the fewest mistakes, not the largest DSC: for that, a voxel
whose lesion is less likely than not may have to count as lesion (Lipton et al. 2014,
arXiv:1402.1892). So the lesion's logit gets a bias before labels are decided.

The mean of calibrated models is too timid: where they contradict each other, it is less sure than
it is right (Rahaman and Thiery 2021, arXiv:2007.08792). So models that were all calibrated on the
same held-out cases get a temperature of their mean, fitted on these cases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from pancreas_mtl.data.files import UNREADABLE, read_text, reason, write_text
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import NUM_SUBTYPES, FloatArray

FILE = "calibration.json"
MIN_CASES = 10  # with fewer, a temperature would be noise
LOWEST, HIGHEST = 0.25, 8.0
PRIOR_SD = 0.3
"""How far a single model's temperature usually is from 1, in the logarithm. It outweighs a dozen
cases, whose own best temperature is noise, and hundreds outweigh it (docs/experiments.md).
"""


@dataclass(frozen=True)
class Calibration:
    """The defaults change nothing, and give no sets.

    `conformity` holds the probability, before any temperature, that the model gave to the true
    subtype of each held-out case; `coverage` is what its sets state. `lesion_bias` is added to the
    lesion's logit; then `largest_pancreas` and `largest_lesion` keep only the largest component.
    `fitted_on` says how many cases of which kind it owes to. `answers` and `cases` are what an
    ensemble needs: the probabilities (S,) from which `conformity` is and the true subtype of each
    held-out case, in the order of their names, and a digest of these names.
    """

    subtype_temperature: float = 1.0
    mask_temperature: float = 1.0
    lesion_bias: float = 0.0
    largest_pancreas: bool = False
    largest_lesion: bool = False
    coverage: float = 0.0
    conformity: tuple[float, ...] = ()
    fitted_on: str = "nothing"
    answers: tuple[tuple[tuple[float, ...], int], ...] = ()
    cases: str = ""


def digest_of(names: Iterable[str]) -> str:
    """What tells whether two models were calibrated on the same cases, without their names."""
    return hashlib.blake2b(json.dumps(list(names)).encode(), digest_size=16).hexdigest()


def fit_temperature(
    probabilities: FloatArray,
    subtypes: npt.NDArray[np.integer],
    *,
    prior_sd: float = PRIOR_SD,
) -> float:
    """The most probable temperature of (N, S) probabilities; 1 for too few cases.

    Args:
        probabilities: of held-out cases.
        subtypes: the true ones, (N,).
        prior_sd: of the temperature's logarithm, around 0; infinite where nothing is expected, for
            which the temperature is that of the least log loss.
    """
    if len(subtypes) < MIN_CASES:
        return 1.0

    def surprise(log_temperature: float) -> float:
        p = with_temperature(probabilities, float(np.exp(log_temperature)))
        log_loss = -np.log(p[np.arange(len(subtypes)), subtypes].clip(1e-12)).sum()
        return float(log_loss + (log_temperature / prior_sd) ** 2 / 2)

    low, high = np.log((LOWEST, HIGHEST))
    return float(np.exp(minimize_scalar(surprise, bounds=(low, high), method="bounded").x))


def fit_ensemble_temperature(calibrations: Sequence[Calibration]) -> float:
    """That of the models' mean; 1 for a single model, or where their held-out cases differ."""
    held_out = {(one.cases, tuple(subtype for _, subtype in one.answers)) for one in calibrations}
    if len(calibrations) < 2 or len(held_out) > 1:
        return 1.0
    subtypes = np.array([subtype for _, subtype in calibrations[0].answers], dtype=np.int64)
    raw = [np.array([p for p, _ in one.answers], dtype=np.float32) for one in calibrations]
    return fit_temperature(calibrated(raw, calibrations), subtypes, prior_sd=np.inf)


def with_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Probabilities (..., S) made softer (T > 1) or sharper (T < 1): p^(1/T), normalised."""
    powered: FloatArray = np.maximum(probabilities, 1e-12) ** np.float32(1 / temperature)
    return powered / powered.sum(axis=-1, keepdims=True)


def calibrated(
    raw: Sequence[FloatArray], calibrations: Sequence[Calibration], *, temperature: float = 1.0
) -> FloatArray:
    """The mean (..., S) of the models' probabilities, each with its own temperature.

    Args:
        raw: probabilities (..., S) of each model.
        calibrations: of each model.
        temperature: of the mean.
    """
    each = [
        with_temperature(probabilities, calibration.subtype_temperature)
        for probabilities, calibration in zip(raw, calibrations, strict=True)
    ]
    average: FloatArray = np.mean(each, axis=0)
    return average if temperature == 1 else with_temperature(average, temperature)


def conformal_set(
    raw: Sequence[FloatArray], calibrations: Sequence[Calibration]
) -> tuple[int, ...] | None:
    """The subtypes that cannot be excluded, in order; None unless every model can tell.

    It may be empty, where the case is unlike the held-out ones, and holds all subtypes where too
    few of those are known for the coverage.

    Args:
        raw: probabilities (S,) of each model, before any temperature.
        calibrations: of each model; models of one ensemble state the same coverage.
    """
    coverage = stated_coverage(calibrations)
    if coverage is None:
        return None
    total = sum(len(calibration.conformity) for calibration in calibrations)
    better = np.zeros(NUM_SUBTYPES)
    for probabilities, calibration in zip(raw, calibrations, strict=True):
        better += (np.array(calibration.conformity)[:, None] > probabilities).sum(axis=0)
    # The new case counts once a model: so models that share their held-out cases exclude no more
    # than one of them could.
    kept = better < coverage * (total + len(calibrations))
    return tuple(int(subtype) for subtype in np.flatnonzero(kept))


def stated_coverage(calibrations: Sequence[Calibration]) -> float | None:
    """What the conformal sets of these models together state; None where they have no sets."""
    coverages = {calibration.coverage for calibration in calibrations}
    if len(coverages) != 1 or not all(calibration.conformity for calibration in calibrations):
        return None
    return coverages.pop()


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Write or replace `calibration.json` of a bundle."""
    write_text(folder / FILE, json.dumps(asdict(calibration), indent=2) + "\n")


def read_calibration(folder: Path) -> Calibration:
    """That of a bundle; without the file, one that changes nothing.

    Raises:
        UsageError: the file is no calibration.
    """
    path = folder / FILE
    if not path.exists():
        return Calibration()
    try:
        calibration = Calibration(**json.loads(read_text(path)))
        calibration = replace(
            calibration,
            conformity=tuple(calibration.conformity),
            answers=tuple((tuple(p), int(subtype)) for p, subtype in calibration.answers),
        )
        _check_bounds(calibration)
    except UNREADABLE as error:
        raise UsageError(
            f"{path}: not a calibration ({reason(error)}); restore it from the run"
        ) from None
    return calibration


def _check_bounds(calibration: Calibration) -> None:
    """Raise a ValueError, or a TypeError, for what no fit could have written."""
    for key in ("subtype_temperature", "mask_temperature"):
        if not 0.01 <= getattr(calibration, key) <= 100:
            raise ValueError(f"{key}={getattr(calibration, key)}")
    if not abs(calibration.lesion_bias) <= 10:
        raise ValueError(f"lesion_bias={calibration.lesion_bias}")
    if not all(0 <= p <= 1 for p in (calibration.coverage, *calibration.conformity)):
        raise ValueError("coverage or conformity outside 0 to 1")
    for p, subtype in calibration.answers:
        if len(p) != NUM_SUBTYPES or not min(p) >= 0 or subtype not in range(NUM_SUBTYPES):
            raise ValueError(f"answers: {p}, {subtype}")
