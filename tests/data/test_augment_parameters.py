import math
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
import yaml

from pancreas_mtl.data.augment import AugmentConfig, Parameters, sample
from pancreas_mtl.errors import UsageError

CONF = Path(__file__).parents[2] / "conf" / "augment"
EVERYTHING = AugmentConfig(
    flip_p=0.5,
    rotation_p=0.6,
    rotation_deg=30,
    scale_p=0.2,
    scale_ratio=1.4,
    noise_p=0.3,
    noise_std=0.1,
    blur_p=0.4,
    blur_sigma_vox=1.0,
    brightness_p=0.5,
    brightness_ratio=1.3,
    contrast_p=0.7,
    contrast_ratio=1.2,
    coarse_p=0.8,
    coarse_ratio=2.0,
    gamma_inverted_p=0.9,
    gamma_p=0.1,
    gamma_ratio=1.5,
)
SEEDS = torch.arange(4000)


def load(name: str) -> dict[str, float]:
    values: dict[str, float] = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return values


def equal(a: Parameters, b: Parameters) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["none", "mild", "standard", "strong"])
def test_a_variant_holds_exactly_the_knobs(name):
    assert list(load(name)) == [field.name for field in fields(AugmentConfig)]
    AugmentConfig(**load(name))


def test_the_variants_grow_from_nothing():
    none, mild, standard, strong = map(load, ["none", "mild", "standard", "strong"])
    assert AugmentConfig(**none) == AugmentConfig()
    for knob in none:
        assert none[knob] < mild[knob] <= standard[knob] <= strong[knob]
    assert mild != standard != strong


def test_the_default_changes_nothing():
    for name, values in sample(AugmentConfig(), SEEDS[:50])._asdict().items():
        if name != "noise_seed":
            ratio = name in ("scale", "brightness", "contrast", "coarse", "gamma", "gamma_inverted")
            assert (values == float(ratio)).all(), name


def test_shapes():
    shapes = {n: tuple(v.shape) for n, v in sample(EVERYTHING, SEEDS[:5])._asdict().items()}
    assert {n for n, shape in shapes.items() if shape == (5, 3)} == {
        "flip",
        "rotation_rad",
        "blur_sigma_vox",
    }
    assert set(shapes.values()) == {(5,), (5, 3)}


def test_a_row_depends_on_its_seed_alone():
    batch = sample(EVERYTHING, torch.tensor([7, 2**62 - 1, 0]))
    torch.rand(3)  # whatever the global generator does
    assert equal(sample(EVERYTHING, torch.tensor([2**62 - 1])).of(0), batch.of(1))
    assert equal(sample(EVERYTHING, torch.tensor([0, 7])).of(1), batch.of(0))
    assert not equal(batch.of(0), batch.of(2))


def test_sampling_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    sample(EVERYTHING, SEEDS[:3])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_strength_keeps_what_the_other_knobs_draw():
    weaker = AugmentConfig(**{**asdict(EVERYTHING), "scale_p": 0.0, "blur_sigma_vox": 0.5})
    a, b = sample(EVERYTHING, SEEDS[:20]), sample(weaker, SEEDS[:20])
    assert torch.equal(a.rotation_rad, b.rotation_rad)
    assert torch.equal(a.noise_seed, b.noise_seed)
    assert torch.equal(a.gamma, b.gamma)
    assert not torch.equal(a.scale, b.scale)


@pytest.mark.parametrize(
    ("name", "neutral", "p"),
    [
        ("rotation_rad", 0, 0.6),
        ("scale", 1, 0.2),
        ("noise_std", 0, 0.3),
        ("blur_sigma_vox", 0, 0.4),
        ("brightness", 1, 0.5),
        ("contrast", 1, 0.7),
        ("coarse", 1, 0.8),
        ("gamma_inverted", 1, 0.9),
        ("gamma", 1, 0.1),
    ],
)
def test_each_change_happens_as_often_as_asked(name, neutral, p):
    values = sample(EVERYTHING, SEEDS)._asdict()[name].view(len(SEEDS), -1)
    changed = (values != neutral).all(1)
    assert torch.equal(changed, (values != neutral).any(1))  # all three axes, or none
    assert changed.float().mean().item() == pytest.approx(p, abs=4 * math.sqrt(0.25 / 4000))


def test_flips_are_independent_per_axis():
    flip = sample(EVERYTHING, SEEDS).flip.float()
    correlation = torch.corrcoef(flip.T) - torch.eye(3)
    assert flip.mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.04)
    assert correlation.abs().max() < 0.08


def test_ranges_are_kept_and_filled():
    drawn = sample(EVERYTHING, SEEDS)
    turn = drawn.rotation_rad[drawn.rotation_rad != 0].rad2deg()
    assert (round(turn.min().item()), round(turn.max().item())) == (-30, 30)
    for values, low, high in [
        (drawn.scale, 1 / 1.4, 1.4),
        (drawn.brightness, 1 / 1.3, 1.3),
        (drawn.contrast, 1 / 1.2, 1.2),
        (drawn.gamma, 1 / 1.5, 1.5),
        (drawn.gamma_inverted, 1 / 1.5, 1.5),
        (drawn.coarse, 1.0, 2.0),
        (drawn.noise_std, 0.0, 0.1),
        (drawn.blur_sigma_vox[drawn.blur_sigma_vox != 0], 0.5, 1.0),
    ]:
        assert low <= values.min() + 1e-6 < low + 0.02
        assert high - 0.02 < values.max() <= high + 1e-6


def test_growing_is_as_likely_as_shrinking():
    scale = sample(AugmentConfig(scale_p=1.0, scale_ratio=1.4), SEEDS).scale
    assert (scale > 1).float().mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("knob", "value", "remedy"),
    [
        ("flip_p", 1.5, "from 0 to 1"),
        ("gamma_p", -0.1, "from 0 to 1"),
        ("scale_ratio", 0.7, "from 1 to inf"),
        ("rotation_deg", 200, "from 0 to 180"),
        ("noise_std", math.nan, "from 0 to inf"),
        ("blur_sigma_vox", math.inf, "from 0 to inf"),
        ("coarse_p", "often", "from 0 to 1"),
    ],
)
def test_a_value_out_of_range_is_refused(knob, value, remedy):
    with pytest.raises(UsageError, match=rf"augment\.{knob} is .*: give a number {remedy}"):
        AugmentConfig(**{knob: value})
