from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pancreas_mtl.evaluation.calibrate import (
    LESION_BIASES,
    MASK_TEMPERATURES,
    HeldOut,
    MaskScores,
    biased,
    cross_fit,
    fit,
    fit_lesion_bias,
    fit_mask_temperature,
    fit_temperature,
    lesion_from,
    mask_log_losses,
    score_masks,
)
from pancreas_mtl.inference.calibration import with_temperature
from pancreas_mtl.inference.postprocess import WholeScores, labels_at
from pancreas_mtl.inference.scores import ModelScores
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


def test_few_cases_hardly_move_the_temperature():
    """Of 40 calibrated cases the best temperature is noise; the prior tames it."""
    free, tamed = [], []
    for seed in range(40):
        probabilities, subtypes = sharpened(np.random.default_rng(seed), 40, sharpness=1.0)
        free.append(fit_temperature(probabilities, subtypes, prior_sd=np.inf))
        tamed.append(fit_temperature(probabilities, subtypes))
    assert np.std(np.log(tamed)) < 0.8 * np.std(np.log(free))
    assert np.mean(np.log(tamed)) == pytest.approx(0, abs=0.1)


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


@pytest.fixture
def reference():
    """A pancreas of 64 voxels, 8 of which are a lesion."""
    labels = np.zeros((6, 6, 12), np.uint8)
    labels[1:5, 1:5, 1:5] = 1
    labels[2:4, 2:4, 2:4] = 2
    return labels


def test_gains_of_the_largest_component(reference):
    never = np.full_like(reference, len(LESION_BIASES))
    prediction = reference.copy()
    assert set(score_masks(prediction, never, reference)) == {(1, 1, 0, 0, 0)}
    prediction[0, 0, 11] = 2
    (scores,) = set(score_masks(prediction, never, reference))
    assert scores.gain_pancreas == pytest.approx(1 - 2 * 64 / 129) == 1 - scores.whole_pancreas
    assert scores.gain_lesion == pytest.approx(1 - 2 * 8 / 17) == 1 - scores.lesion
    assert scores.gain_lesion_within == 0, "it went with its island"


def test_masks_are_scored_with_each_bias(reference):
    """The lesion has all its voxels from the third bias on; from the fourth on, ten too many."""
    prediction, first = reference.clip(max=1), np.full_like(reference, len(LESION_BIASES))
    first[reference == 2] = 2
    first[0, 0, :10] = 3
    lesions = [scores.lesion for scores in score_masks(prediction, first, reference)]
    assert lesions == pytest.approx([0, 0, 1, 2 * 8 / 26, 2 * 8 / 26])
    wholes = [scores.whole_pancreas for scores in score_masks(prediction, first, reference)]
    assert wholes == pytest.approx([1, 1, 1, 128 / 138, 128 / 138])


def test_the_last_planes_are_seen_though_nobody_asks_for_them():
    logits = np.random.default_rng(0).normal(size=(3, 6, 4, 4)).astype(np.float32)
    windows = SimpleNamespace(
        shape=logits.shape, planes=lambda low, high: torch.from_numpy(logits[:, low:high])
    )
    scores = ModelScores(windows, as_probabilities=False, keeps_logits=True)
    scores.planes(0, 4)
    scores.complete()
    scores.complete()
    np.testing.assert_array_equal(np.concatenate(scores.kept, axis=1), logits)


def test_what_a_bias_changes_is_what_prediction_changes_with_it():
    """In another grid than the plan's, with a model's scores as `predict.py` takes them."""
    logits = np.random.default_rng(0).normal(scale=3, size=(3, 6, 9, 8)).astype(np.float32)
    shape, orders = (11, 7, 8), (0, 1, 1)
    first = lesion_from(logits, shape, orders)
    plain = labels_at([WholeScores(logits)], shape, orders=[orders])
    assert len(np.unique(first)) == 1 + len(LESION_BIASES)
    windows = SimpleNamespace(
        shape=logits.shape, planes=lambda low, high: torch.from_numpy(logits[:, low:high])
    )
    entropies = set()
    for bias in LESION_BIASES:
        scores = ModelScores(windows, as_probabilities=False, lesion_bias=bias)
        answer = labels_at([scores], shape, orders=[orders])
        np.testing.assert_array_equal(biased(plain, first, bias), answer)
        entropies.add(scores.entropy.value)
        softened = ModelScores(windows, as_probabilities=True, temperature=2.5, lesion_bias=bias)
        np.testing.assert_array_equal(
            softened.planes(0, 6).argmax(0), WholeScores(logits, bias).planes(0, 6).argmax(0)
        )
    assert len(entropies) == 1, "the uncertainty is the network's"


def masks(lesion, whole=(0.9, 0.9, 0.9, 0.9, 0.9)):
    return [MaskScores(w, value, 0, 0, 0) for value, w in zip(lesion, whole, strict=True)]


def test_the_bias_is_the_one_with_the_best_lesions():
    cases = [masks((0.2, 0.3, 0.5, 0.4, 0.4))] * 6 + [masks((0.2, 0.4, 0.4, 0.5, 0.1))] * 6
    assert fit_lesion_bias(cases) == LESION_BIASES[2]
    assert fit_lesion_bias(cases[:9]) == 0, "too few cases"
    assert fit_lesion_bias([masks((0.5,) * 5)] * 10) == 0, "nothing gained"


def test_the_bias_leaves_the_whole_pancreas_alone():
    cases = [masks((0.2, 0.3, 0.5, 0.4, 0.4), whole=(0.9, 0.9, 0.898, 0.8992, 0.8))] * 10
    assert fit_lesion_bias(cases) == LESION_BIASES[3]


def test_a_clean_up_is_judged_on_the_masks_that_it_will_clean():
    """Worth it with the chosen bias, harmful without."""
    scores = [MaskScores(0.9, 0.1, -0.1, -0.1, -1), *[MaskScores(0.9, 0.2, 0.1, -1, 0.1)] * 4]
    fitted = fit(
        [HeldOut(str(n), "a", masks=tuple(scores)) for n in range(10)], coverage=0.9, kind="x"
    )
    assert fitted.lesion_bias == LESION_BIASES[1]
    assert fitted.largest_pancreas
    assert fitted.largest_lesion


def test_a_clean_up_of_lesions_is_judged_on_pancreases_as_they_will_be():
    scores = [MaskScores(0.9, 0.2, 0.1, 0.1, -0.1)] * 5
    cases = [HeldOut(str(n), "a", masks=tuple(scores)) for n in range(10)]
    fitted = fit(cases, coverage=0.9, kind="x")
    assert (fitted.largest_pancreas, fitted.largest_lesion) == (True, False)


def case(group, gain, name="a"):
    scores = MaskScores(0.9, 0.5, gain, -gain, -gain)
    return HeldOut(name, group, 0, (0.6, 0.3, 0.1), (scores,) * len(LESION_BIASES))


def test_a_group_is_calibrated_by_the_others():
    """Fold a gains from the clean-up, fold b loses: each takes the other's advice."""
    cases = [case("a", 0.2), case("a", 0.1)] * 5 + [case("b", -0.5)] * 11
    each = cross_fit(cases, coverage=0.9, kind="out-of-fold")
    assert (each["a"].largest_pancreas, each["a"].largest_lesion) == (False, True)
    assert (each["b"].largest_pancreas, each["b"].largest_lesion) == (True, False)
    assert len(each["a"].conformity) == 11
    assert each["b"].fitted_on == "10 out-of-fold cases"


def test_a_few_cases_decide_on_no_clean_up():
    fitted = fit([case("a", 0.2)] * 9, coverage=0.9, kind="x")
    assert not fitted.largest_pancreas


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
