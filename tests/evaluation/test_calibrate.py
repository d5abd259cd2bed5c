import numpy as np
import pytest

from pancreas_mtl.evaluation.calibrate import (
    MASK_TEMPERATURES,
    HeldOut,
    clean_up_gains,
    cross_fit,
    fit,
    fit_mask_temperature,
    fit_temperature,
    mask_log_losses,
)
from pancreas_mtl.inference.calibration import with_temperature
from pancreas_mtl.metrics.subtype import ece


def sharpened(rng, num_cases, sharpness):
    """Subtypes drawn from known probabilities, and these probabilities made sharper."""
    logits = 1.5 * rng.normal(size=(num_cases, 3))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    subtypes = np.array([rng.choice(3, p=p) for p in true])
    return with_temperature(true.astype(np.float32), 1 / sharpness), subtypes


def test_the_temperature_undoes_over_confidence():
    probabilities, subtypes = sharpened(np.random.default_rng(0), 3000, sharpness=3.0)
    temperature = fit_temperature(probabilities, subtypes)
    assert temperature == pytest.approx(3.0, rel=0.1)
    assert ece(subtypes, probabilities) > 0.1
    assert ece(subtypes, with_temperature(probabilities, temperature)) < 0.03


def test_too_few_cases_have_no_temperature():
    probabilities, subtypes = sharpened(np.random.default_rng(0), 9, sharpness=3.0)
    assert fit_temperature(probabilities, subtypes) == 1


def test_the_masks_temperature_undoes_over_confidence():
    rng = np.random.default_rng(0)
    true = 1.5 * rng.normal(size=(3, 12, 20, 20)).astype(np.float32)
    shares = np.exp(true) / np.exp(true).sum(0)
    drawn = (rng.random((1, 12, 20, 20)) > shares.cumsum(0)).sum(0).clip(max=2).astype(np.uint8)
    curve = mask_log_losses(2 * true, drawn)
    assert len(curve) == len(MASK_TEMPERATURES)
    assert fit_mask_temperature([curve, None]) == pytest.approx(2.0, rel=0.1)
    assert curve[MASK_TEMPERATURES.index(1.0)] > min(curve)


def test_certain_background_does_not_count():
    logits = np.zeros((3, 2, 2, 2), np.float32)
    logits[0] = 20
    assert mask_log_losses(logits, np.zeros((2, 2, 2), np.uint8)) is None
    assert fit_mask_temperature([None]) == 1


def test_gains_of_the_largest_component():
    reference = np.zeros((6, 6, 12), np.uint8)
    reference[1:5, 1:5, 1:5] = 1
    reference[2:4, 2:4, 2:4] = 2
    prediction = reference.copy()
    assert clean_up_gains(prediction, reference) == (0, 0)
    prediction[0, 0, 11] = 2
    whole, lesion = clean_up_gains(prediction, reference)
    assert whole == pytest.approx(1 - 2 * 64 / 129)
    assert lesion == pytest.approx(1 - 2 * 8 / 17)


def case(group, gain, name="a"):
    probabilities = (0.6, 0.3, 0.1)
    return HeldOut(name, group, 0, probabilities, gain, -gain, None)


def test_a_group_is_calibrated_by_the_others():
    """Fold a gains from the clean-up, fold b loses: each takes the other's advice."""
    cases = [case("a", 0.2), case("a", 0.1), case("b", -0.5)]
    each = cross_fit(cases, coverage=0.9, kind="out-of-fold")
    assert (each["a"].largest_pancreas, each["a"].largest_lesion) == (False, True)
    assert (each["b"].largest_pancreas, each["b"].largest_lesion) == (True, False)
    assert len(each["a"].conformity) == 1
    assert each["b"].fitted_on == "2 out-of-fold cases"


def test_the_subtypes_figures_owe_nothing_to_their_own_references():
    """Over-confident answers: a group without any mistake is softened all the same."""
    probabilities, subtypes = sharpened(np.random.default_rng(0), 400, sharpness=4.0)
    cases = [
        HeldOut(str(n), "right" if p.argmax() == s else "rest", int(s), tuple(map(float, p)))
        for n, (p, s) in enumerate(zip(probabilities, subtypes, strict=True))
    ]
    each = cross_fit(cases, coverage=0.9, kind="x")
    assert each["rest"].subtype_temperature < 1 < each["right"].subtype_temperature
    whole = fit(cases, coverage=0.9, kind="x")
    assert whole.subtype_temperature == pytest.approx(4.0, rel=0.25)
    assert len(whole.conformity) == 400


def test_parts_without_references_change_nothing():
    calibration = fit([HeldOut("a", "0")], coverage=0.9, kind="x")
    assert calibration.subtype_temperature == calibration.mask_temperature == 1
    assert not calibration.largest_pancreas
    assert calibration.conformity == ()
