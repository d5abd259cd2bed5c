import json

import numpy as np
import pytest

from pancreas_mtl.data.fingerprint import Fingerprint
from pancreas_mtl.data.plan import (
    PlanConfig,
    feature_values,
    load_plan,
    make_plan,
    save_plan,
    target_spacing,
    topology_for,
)
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import Intensity

INTENSITY = Intensity(mean_hu=74.0, std_hu=44.0, low_hu=-56.0, high_hu=180.0)
# Quantiles 0, 5, 25, 50, 75, 95, 100 % of the 288 labelled cases of the quiz.
LEVELS = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
SPACING_Z = (0.45, 0.7, 1.0, 2.0, 3.0, 4.0, 8.0)
SPACING_XY = (0.33, 0.56, 0.68, 0.732, 0.78, 0.89, 0.98)
EXTENT_MM = (59 * 2.0, 117 * 0.732, 180 * 0.732)


def quiz_fingerprint() -> Fingerprint:
    """288 cases with the quiz's quantiles of spacing and its median extent."""
    level = (np.arange(287) + 0.5) / 287
    z, xy = np.interp(level, LEVELS, SPACING_Z), np.interp(level, LEVELS, SPACING_XY)
    xy = np.random.default_rng(0).permutation(xy)
    spacings = [(float(a), float(b), float(b)) for a, b in zip(z, xy, strict=True)]
    shapes = [
        tuple(round(mm / step) for mm, step in zip(EXTENT_MM, spacing, strict=True))
        for spacing in spacings
    ]
    return Fingerprint(tuple(shapes), tuple(spacings), INTENSITY)


def test_quiz_statistics_give_the_known_plan():
    plan = make_plan(quiz_fingerprint(), PlanConfig())
    assert plan.spacing_mm == pytest.approx((2.0, 0.732, 0.732), abs=1e-3)
    assert plan.patch_size == (64, 128, 192)
    assert plan.channels == (32, 64, 128, 256, 320, 320)
    assert plan.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.kernels == ((1, 3, 3), *[(3, 3, 3)] * 5)
    assert plan.batch_size == 3


def test_spacing_of_a_strongly_anisotropic_axis_is_its_tenth_percentile():
    shapes = [(20, 300, 300)] * 11
    spacings = [(float(z), 0.7, 0.9) for z in np.linspace(4, 6, 11)]
    assert target_spacing(shapes, spacings) == pytest.approx((4.2, 0.7, 0.9))
    assert target_spacing([(300, 300, 300)] * 11, spacings) == pytest.approx((5.0, 0.7, 0.9))


def test_axes_pool_once_they_are_within_a_factor_of_two():
    topology = topology_for((0.7, 2.0, 0.9), (64, 32, 48))
    assert topology.strides[1] == (2, 1, 2)
    assert topology.kernels[0] == (3, 1, 3)
    assert topology.kernels[1] == (3, 3, 3)
    for axis, size in enumerate(topology.patch_size):
        assert size % topology.divisor[axis] == 0


def test_memory_shrinks_the_patch_and_keeps_it_divisible():
    large = make_plan(quiz_fingerprint(), PlanConfig(memory_gb=8))
    small = make_plan(quiz_fingerprint(), PlanConfig(memory_gb=3))
    assert np.prod(small.patch_size) < np.prod(large.patch_size)
    topology = topology_for(small.spacing_mm, small.patch_size)
    assert topology.patch_size == small.patch_size
    assert feature_values(topology, small.channels) <= 560e6 * 3 / 8


def test_batch_grows_with_memory():
    sizes = [
        make_plan(quiz_fingerprint(), PlanConfig(memory_gb=gb, patch_size=(32, 64, 96))).batch_size
        for gb in (8, 32)
    ]
    assert 2 <= sizes[0] < sizes[1]


def test_patch_that_the_strides_do_not_divide_is_refused():
    with pytest.raises(UsageError, match=r"plan.patch_size=\[30, 64, 96\].*\[32, 64, 96\]"):
        make_plan(quiz_fingerprint(), PlanConfig(patch_size=(30, 64, 96)))


def test_too_little_memory_is_refused():
    with pytest.raises(UsageError, match=r"plan\.memory_gb=0\.001"):
        make_plan(quiz_fingerprint(), PlanConfig(memory_gb=0.001))


def test_file_round_trip(tmp_path, plan):
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("channels", [10**9, 8, 8], "channels"),
        ("patch_size", [8, 16, 15], "not divisible"),
        ("patch_size", [10**5, 10**5, 10**5], "patch_size"),
        ("strides", [[1, 1, 1], [0, 2, 2], [2, 2, 2]], "strides"),
        ("spacing_mm", [0, 1, 1], "spacing_mm"),
        ("schema", 2, "plan schema 2"),
        ("colour", 1, "not a plan"),
        ("channels", "many", "channels=many is out of bounds"),
        ("intensity", {"mean_hu": 0}, "not a plan"),
    ],
)
def test_edited_plans_are_checked(tmp_path, plan, key, value, message):
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UsageError, match=message):
        load_plan(path)


def test_missing_plan(tmp_path):
    with pytest.raises(UsageError, match="not found"):
        load_plan(tmp_path / "plan.json")


def test_reductions_multiply_the_strides(plan):
    assert plan.reductions == ((1, 1, 1), (1, 2, 2), (2, 4, 4))
