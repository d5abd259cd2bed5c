import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import distance_transform_edt, uniform_filter
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from pancreas_mtl.data.phantom import make_phantom
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.calibration import (
    FILE,
    Calibration,
    calibrated,
    conformal_set,
    fit_ensemble_temperature,
    fit_temperature,
    read_calibration,
    save_calibration,
    with_temperature,
)
from pancreas_mtl.types import Label

COVERAGE = 0.9


def answers(rng, subtypes, skill=1.0):
    """Over-confident probabilities (N, S) whose argmax is often right."""
    logits = skill * np.eye(3)[subtypes] + rng.normal(size=(len(subtypes), 3))
    powers = np.exp(3 * logits)
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def conformity(probabilities, subtypes):
    own = probabilities[np.arange(len(subtypes)), subtypes]
    return Calibration(coverage=COVERAGE, conformity=tuple(float(p) for p in own))


def test_temperature():
    p = np.array([[0.7, 0.2, 0.1]], np.float32)
    np.testing.assert_allclose(with_temperature(p, 1.0), p, rtol=1e-6)
    assert with_temperature(p, 2.0)[0, 0] < 0.7 < with_temperature(p, 0.5)[0, 0]
    np.testing.assert_allclose(with_temperature(p, 3.0).sum(), 1, rtol=1e-6)
    assert np.isfinite(with_temperature(np.array([1.0, 0.0, 0.0], np.float32), 0.25)).all()


def test_an_ensemble_averages_calibrated_probabilities():
    raw = [np.array([0.8, 0.1, 0.1], np.float32), np.array([0.2, 0.2, 0.6], np.float32)]
    both = [Calibration(subtype_temperature=1.0), Calibration(subtype_temperature=2.0)]
    root = np.sqrt(raw[1]) / np.sqrt(raw[1]).sum()
    np.testing.assert_allclose(calibrated(raw, both), (raw[0] + root) / 2, rtol=1e-6)


def models_of_the_same_cases(count, rng, cases="some", n=400):
    """Models that err independently: their calibrations, and what they say of as many new cases."""
    subtypes = rng.integers(3, size=2 * n)
    raw = [answers(rng, subtypes, skill=0.7) for _ in range(count)]
    calibrations = [
        Calibration(
            subtype_temperature=fit_temperature(p[:n], subtypes[:n]),
            answers=tuple(zip(map(tuple, p[:n].tolist()), subtypes[:n].tolist(), strict=True)),
            cases=cases,
        )
        for p in raw
    ]
    return calibrations, [p[n:] for p in raw], subtypes[n:]


def test_models_of_the_same_cases_get_a_temperature_of_their_mean():
    """The mean of calibrated models that contradict each other is too timid, on new cases too."""
    calibrations, raw, subtypes = models_of_the_same_cases(4, np.random.default_rng(0))
    temperature = fit_ensemble_temperature(calibrations)
    mean, mended = (
        calibrated(raw, calibrations),
        calibrated(raw, calibrations, temperature=temperature),
    )
    confidence, is_right = mean.max(1).mean(), (mean.argmax(1) == subtypes).mean()
    assert confidence < is_right - 0.1
    assert mended.max(1).mean() == pytest.approx(is_right, abs=0.05)
    assert temperature < 0.8
    np.testing.assert_array_equal(mended.argmax(1), mean.argmax(1))


def test_without_common_cases_there_is_nothing_to_fit():
    (one, two), _, _ = models_of_the_same_cases(2, np.random.default_rng(0), n=50)
    assert fit_ensemble_temperature([one, two]) != 1
    assert fit_ensemble_temperature([one]) == 1
    assert fit_ensemble_temperature([one, replace(two, cases="others")]) == 1
    relabelled = tuple((p, (subtype + 1) % 3) for p, subtype in two.answers)
    assert fit_ensemble_temperature([one, replace(two, answers=relabelled)]) == 1
    assert fit_ensemble_temperature([Calibration(), Calibration()]) == 1


def test_a_single_models_set_is_the_quantile_rule():
    """Split conformal: keep what is at least as probable as the k-th largest of n conformities."""
    rng = np.random.default_rng(0)
    own = rng.random(49)
    calibration = Calibration(coverage=COVERAGE, conformity=tuple(own))
    threshold = np.sort(own)[::-1][int(np.ceil(COVERAGE * 50)) - 1]
    for _ in range(50):
        p = rng.dirichlet(np.ones(3)).astype(np.float32)
        assert conformal_set([p], [calibration]) == tuple(np.flatnonzero(p >= threshold))


def test_models_that_share_their_held_out_cases_count_them_once():
    """The same model four times excludes what it excludes by itself, with few cases nothing."""
    rng = np.random.default_rng(0)
    for count in (3, 8, 9, 30):
        one = Calibration(coverage=COVERAGE, conformity=tuple(rng.random(count)))
        for _ in range(20):
            p = rng.dirichlet(np.ones(3)).astype(np.float32)
            assert conformal_set([p] * 4, [one] * 4) == conformal_set([p], [one])
            assert count >= 9 or conformal_set([p], [one]) == (0, 1, 2)


def test_coverage_lies_in_the_binomial_interval():
    """1,000 pairs of 60 calibration cases and one new case each, exchangeable by construction."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        subtypes = rng.integers(0, 3, 61)
        p = answers(rng, subtypes)
        found = conformal_set([p[-1]], [conformity(p[:-1], subtypes[:-1])])
        hits += subtypes[-1] in found
    exact = np.ceil(COVERAGE * 61) / 61  # what the rule promises for 60 cases
    low, high = stats.binom.interval(0.999, 1000, exact)
    assert low <= hits <= high


def looks(case):
    """HU and texture of a phantom's lesion in shells, of its surroundings and of the pancreas."""
    image, lesion = case.image_hu.astype(np.float32), case.labels == Label.LESION
    depth_mm = distance_transform_edt(lesion, case.spacing_mm)
    depth_mm -= distance_transform_edt(~lesion, case.spacing_mm)
    shells = [(depth_mm > low) & (depth_mm <= low + 2) for low in (-4, -2, 0, 2, 4)]
    regions = [shell if shell.sum() > 5 else lesion for shell in shells]
    regions.append(case.labels == Label.PANCREAS)
    fine = (image - uniform_filter(image, 3))[lesion].std()
    return [fine, *(measure(image[region]) for region in regions for measure in (np.mean, np.std))]


@pytest.mark.slow
def test_coverage_on_fresh_phantoms_lies_in_the_binomial_interval():
    """Hard phantoms: 50 teach a discriminant, 50 others calibrate it, 100 fresh ones are answered.

    One calibration has luck, which is larger than the 100 cases' own; so 50 draw lots anew.
    """
    cases = [make_phantom(11, n, difficulty="hard", size="small") for n in range(200)]
    subtypes = np.array([case.subtype for case in cases])
    features = StandardScaler().fit_transform([looks(case) for case in cases])
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    rng = np.random.default_rng(0)
    hits, sizes = [], []
    for _ in range(50):
        known, held_out, fresh = np.split(rng.permutation(200), (50, 100))
        model.fit(features[known], subtypes[known])
        p = model.predict_proba(features).astype(np.float32)
        calibration = replace(
            conformity(p[held_out], subtypes[held_out]),
            subtype_temperature=fit_temperature(p[held_out], subtypes[held_out]),
        )
        sets = [conformal_set([one], [calibration]) for one in p[fresh]]
        hits.append(sum(s in found for s, found in zip(subtypes[fresh], sets, strict=True)))
        sizes.append(np.mean([len(found) for found in sets]))
    low, high = stats.binom.interval(0.95, 100, COVERAGE)
    assert low <= np.mean(hits) <= high
    assert np.mean(sizes) < 2.5  # not because they name every subtype


def test_coverage_of_an_ensemble_of_folds_is_at_least_the_stated():
    """Five models of different skill, each with 12 cases that it had not seen."""
    rng = np.random.default_rng(2)
    hits, skills = 0, np.linspace(0.3, 1.5, 5)
    for _ in range(600):
        folds = [(rng.integers(0, 3, 12), skill) for skill in skills]
        models = [conformity(answers(rng, subtypes, skill), subtypes) for subtypes, skill in folds]
        truth = rng.integers(0, 3, 1)
        raw = [answers(rng, truth, skill)[0] for skill in skills]
        hits += int(truth[0]) in conformal_set(raw, models)
    assert hits >= stats.binom.ppf(0.001, 600, COVERAGE)


def test_too_few_cases_exclude_nothing():
    p = np.array([0.98, 0.01, 0.01], np.float32)
    few = Calibration(coverage=COVERAGE, conformity=(0.9,) * 8)
    assert conformal_set([p], [few]) == (0, 1, 2)
    enough = Calibration(coverage=COVERAGE, conformity=(0.9,) * 9)
    assert conformal_set([p], [enough]) == (0,)


def test_no_set_unless_every_model_can_tell():
    p = np.array([0.8, 0.1, 0.1], np.float32)
    known = Calibration(coverage=COVERAGE, conformity=(0.5,) * 20)
    assert conformal_set([p], [Calibration()]) is None
    assert conformal_set([p, p], [known, Calibration(coverage=COVERAGE)]) is None
    assert conformal_set([p, p], [known, Calibration(coverage=0.5, conformity=(0.5,))]) is None


def test_a_set_may_be_empty():
    unsure = np.full(3, 1 / 3, np.float32)
    sure = Calibration(coverage=COVERAGE, conformity=(0.9,) * 20)
    assert conformal_set([unsure], [sure]) == ()


def test_round_trip(tmp_path):
    assert read_calibration(tmp_path) == Calibration()
    calibration = Calibration(
        subtype_temperature=2.0,
        mask_temperature=1.5,
        lesion_bias=3.0,
        largest_pancreas=True,
        coverage=0.9,
        conformity=(0.1, 0.5),
        fitted_on="2 validation cases",
        answers=(((0.1, 0.9, 0.0), 0), ((0.3, 0.5, 0.2), 1)),
        cases="a digest",
    )
    save_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        json.dumps({"temperature": 2}),
        json.dumps({"answers": [[[0.5, 0.5], 1]]}),
        json.dumps({"answers": [[[0.5, 0.3, 0.2], 3]]}),
        json.dumps({"answers": [[[0.5, 0.3, "a"], 2]]}),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UsageError, match=r"calibration.json: not a calibration"):
        read_calibration(tmp_path)
